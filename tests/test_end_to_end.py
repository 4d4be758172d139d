"""A real server of the tiny pair: what clients get is what the engine alone would give."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from engine_driver import Request, make_worker, run
from oracle import Oracle
from server_process import ServerProcess
from tiny_model import VOCABULARY, TinyPair

from pdv_mp.client.client import AsyncClient, Client, Completion, ServerError
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.timeline import orchestration_share
from pdv_mp.wire.engine import Finish

FINISH = {Finish.STOP: "stop", Finish.LENGTH: "length"}


def random_requests(count: int, seed: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [
        Request(
            prompt=tuple(rng.integers(1, VOCABULARY, int(rng.integers(1, 80))).tolist()),
            max_tokens=int(rng.integers(1, 33)),
            temperature=float(rng.choice([0.0, 0.7, 1.0])),
            top_k=int(rng.choice([0, 20])),
            top_p=float(rng.choice([1.0, 0.9])),
            seed=int(rng.integers(0, 2**53)),
            stop_ids=tuple(rng.integers(1, VOCABULARY, 2).tolist()),
            speculate=bool(rng.random() < 0.8),
        )
        for _ in range(count)
    ]


def params(request: Request) -> SamplingParams:
    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        seed=request.seed,
        stop_token_ids=request.stop_ids,
        ignore_eos=True,
        speculate=request.speculate,
    )


def counters(client: Client) -> dict[str, int]:
    found: dict[str, int] = client.info()["counters"]
    return found


def forwards(before: dict[str, int], after: dict[str, int]) -> int:
    kinds = ("prefill_forwards", "draft_prefill_forwards", "draft_forwards", "verify_forwards")
    return sum(after[kind] - before[kind] for kind in kinds)


def test_clients_get_the_engines_own_tokens(
    tiny_server: ServerProcess, tiny_pair: TinyPair
) -> None:
    requests = random_requests(150, seed=1)
    worker = make_worker(tiny_pair.verifier, tiny_pair.draft, max_model_len=256)
    expected = run(worker, requests, np.random.default_rng(0))
    assert Oracle(tiny_pair.verifier).judge(requests, expected).wrong == []
    with Client(tiny_server.ready["endpoint"]) as client:
        order = {client.submit(r.prompt, params(r)): i for i, r in enumerate(requests)}
        for completion in client.results():
            assert isinstance(completion, Completion)
            index = order[completion.id]
            wanted = expected[index]
            assert completion.ids == wanted.ids, requests[index]
            assert completion.finish == FINISH[wanted.finish]
            assert completion.stop_reason == (wanted.stop_id if wanted.stop_id >= 0 else None)
            assert completion.speculation["drafted"] == wanted.drafted
            assert completion.speculation["accepted"] == wanted.accepted
            assert completion.usage["prompt_tokens"] == len(requests[index].prompt)
            assert completion.text == client.detokenize(completion.ids)
        assert client.info()["pools"]["blocks_in_use"] == 0


def test_streams_join_to_the_whole(tiny_server: ServerProcess) -> None:
    with Client(tiny_server.ready["ipc"]) as client:
        whole = client.complete("def add(first,", max_tokens=40, ignore_eos=True)
        stream = client.generate("def add(first,", max_tokens=40, ignore_eos=True)
        chunks = list(stream)
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert [token for chunk in chunks for token in chunk.ids] == whole.ids
        assert len(chunks) > 3
        completion = stream.result()
        assert sum(completion.drafted) == completion.speculation["accepted"]


def test_a_stop_text_cuts_the_text_and_ends_the_work(tiny_server: ServerProcess) -> None:
    with Client(tiny_server.ready["endpoint"]) as client:
        whole = client.complete("class Point:", max_tokens=60, ignore_eos=True)
        stop = whole.text[10:13]
        place = whole.text.index(stop)
        cut = client.complete("class Point:", max_tokens=60, ignore_eos=True, stop=[stop])
        assert cut.finish == "stop"
        assert cut.stop_reason == stop
        assert cut.text == whole.text[:place]
        assert whole.ids[: len(cut.ids)] == cut.ids
        assert stop in client.detokenize(cut.ids)
        assert stop not in client.detokenize(cut.ids[:-1])


def test_the_same_seed_gives_the_same_tokens_with_and_without_speculation(
    tiny_server: ServerProcess,
) -> None:
    wanted = SamplingParams(max_tokens=30, temperature=1.0, ignore_eos=True)
    with Client(tiny_server.ready["endpoint"]) as client:
        drawn = client.complete("for index in", wanted)
        again = replace(wanted, seed=drawn.seed)
        assert client.complete("for index in", again).ids == drawn.ids
        assert client.complete("for index in", replace(again, speculate=False)).ids == drawn.ids
        assert client.complete("for index in", replace(wanted, seed=1)).ids != drawn.ids


def test_requests_sent_at_once_share_their_forwards(
    start_server: Callable[..., ServerProcess],
) -> None:
    # Prompts of one length and no stops, so that all run in step; nothing else uses this server.
    prompts = [list(range(i, i + 12)) for i in range(1, 33)]
    wanted = SamplingParams(max_tokens=24, ignore_eos=True)
    with Client(start_server().ready["endpoint"]) as client:
        start = counters(client)
        for prompt in prompts:
            client.submit(prompt, wanted)
        together = {r.id: r.ids for r in client.results() if isinstance(r, Completion)}
        middle = counters(client)
        apart = [client.complete(prompt, wanted).ids for prompt in prompts]
        end = counters(client)
    assert sorted(together.values()) == sorted(apart)
    assert forwards(middle, end) >= 10 * forwards(start, middle)


def test_timelines_add_up_under_load(tiny_server: ServerProcess) -> None:
    async def serve() -> list[Completion]:
        async with AsyncClient(tiny_server.ready["endpoint"]) as client:

            async def one(index: int) -> Completion:
                stream = await client.generate(
                    f"def f{index}(", max_tokens=20, ignore_eos=True, timeline=True
                )
                return await stream.result()

            return list(await asyncio.gather(*(one(index) for index in range(60))))

    good = 0
    for completion in asyncio.run(serve()):
        timeline = completion.timeline
        assert timeline is not None
        total = sum(entry["ns"] for entry in timeline["states"].values())
        good += abs(total - timeline["e2e_ns"]) <= 0.01 * timeline["e2e_ns"]
        assert all(entry["ns"] >= 0 for entry in timeline["states"].values()), timeline
        assert 0 < orchestration_share(timeline) < 1
        assert {"front.text", "prefill.compute", "verify.compute"} <= set(timeline["states"])
        e2e_ms = completion.timing["e2e_ms"]
        assert e2e_ms == pytest.approx(timeline["e2e_ns"] / 1e6, rel=0.05, abs=1.0)
    assert good >= 60 * 0.99


def test_cancelling_frees_the_work_of_one_request_only(tiny_server: ServerProcess) -> None:
    with Client(tiny_server.ready["endpoint"]) as client:
        kept = client.generate("def keep(", max_tokens=60, ignore_eos=True)
        dropped = client.generate("def drop(", max_tokens=400, ignore_eos=True)
        next(dropped)
        dropped.cancel()
        assert dropped.result().finish == "abort"
        assert len(kept.result().ids) == 60
        assert client.info()["pools"]["slots_in_use"] == 0


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        ({"max_tokens": 10**6}, "too_large", "max_tokens"),
        ({"max_tokens": 511}, "context_length_exceeded", "max_tokens"),
    ],
)
def test_refusals_name_the_reason_and_the_next_request_is_served(
    tiny_server: ServerProcess, options: dict[str, object], code: str, word: str
) -> None:
    with Client(tiny_server.ready["endpoint"]) as client:
        with pytest.raises(ServerError, match=word) as caught:
            client.complete("def add(first, second):", **options)
        assert caught.value.code == code
        assert len(client.complete("x", max_tokens=2, ignore_eos=True).ids) == 2


def test_many_more_requests_than_slots_are_all_served(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server(
        "--max-num-seqs", "2", "--kv-cache-memory", "64K", "--max-model-len", "64"
    )
    wanted = SamplingParams(max_tokens=10, ignore_eos=True)
    with Client(server.ready["endpoint"]) as client:
        for index in range(40):
            client.submit([index + 1, 2, 3], wanted)
        info = client.info()
        assert info["pools"]["slots"] == 3
        results = list(client.results())
        assert len(results) == 40
        assert all(isinstance(r, Completion) and len(r.ids) == 10 for r in results)
        assert max(batch["sequences"] for batch in client.info()["batches"]) <= 3


def sendings_to_the_front(client: Client) -> int:
    """How often results were published: of messages that go together one is counted."""
    found = client.info()["handoffs"].get("verify>front")
    return 0 if found is None else int(found["parts"]["publish"]["n"])


def test_tokens_that_nobody_waits_for_are_sent_together(tiny_server: ServerProcess) -> None:
    options = SamplingParams(max_tokens=100, ignore_eos=True, speculate=False)
    found = {}
    with Client(tiny_server.ready["endpoint"]) as client:
        for stream in (True, False):
            before = sendings_to_the_front(client)
            completion = client.generate([3, 4, 5], options, stream=stream).result()
            assert len(completion.ids) == 100
            found[stream] = sendings_to_the_front(client) - before
    assert found[True] == 100
    assert 2 <= found[False] <= 50
