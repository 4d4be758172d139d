"""The worker's loop: one batch per stage and cycle, prompts in chunks between verify batches."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from engine_driver import Request, Result, collect, make_worker, open_message, run
from hypothesis import given, settings
from hypothesis import strategies as st
from random_lengths import use_random_lengths
from split_engine import make_split
from tiny_model import VOCABULARY, TinyPair

from pdv_mp.speculation.draft_length.controller import DecodeBatch
from pdv_mp.speculation.draft_length.fixed import FixedLength
from pdv_mp.timeline import Timeline, state_index
from pdv_mp.wire.engine import Finish
from pdv_mp.workers.worker import Worker

BUDGET = 16


def forwards(worker: Worker) -> int:
    counters = worker.counters
    return (
        counters.prefill_forwards
        + counters.draft_prefill_forwards
        + counters.draft_forwards
        + counters.verify_forwards
    )


def prompts(count: int, length: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(1, VOCABULARY, length).tolist()) for _ in range(count)]


def serve_together(worker: Worker, requests: list[Request]) -> list[Result]:
    return run(worker, requests, np.random.default_rng(0), arrivals_per_step=1000)


def test_requests_sent_at_once_share_their_forwards(tiny_pair: TinyPair) -> None:
    requests = [Request(prompt, max_tokens=24) for prompt in prompts(32, 12)]
    together = make_worker(tiny_pair.verifier, tiny_pair.draft, max_model_len=64)
    at_once = serve_together(together, requests)
    apart = make_worker(tiny_pair.verifier, tiny_pair.draft, max_model_len=64)
    one_by_one = [serve_together(apart, [request])[0] for request in requests]
    assert [r.ids for r in at_once] == [r.ids for r in one_by_one]
    assert forwards(apart) >= 10 * forwards(together)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), priority=st.sampled_from([0.25, 0.5, 1.0]))
def test_at_most_one_chunk_lies_between_two_verify_batches(
    tiny_pair: TinyPair, seed: int, priority: float
) -> None:
    rng = np.random.default_rng(seed)
    worker = make_worker(
        tiny_pair.verifier,
        tiny_pair.draft,
        max_num_seqs=6,
        max_num_batched_tokens=BUDGET,
        prefill_priority=priority,
        max_model_len=256,
    )
    requests = [
        Request(prompts(1, int(rng.integers(1, 150)), seed + i)[0], int(rng.integers(1, 40)))
        for i in range(12)
    ]
    run(worker, requests, rng, arrivals_per_step=0.5)
    chunks_since_verify = 0
    chunks = 0
    for batch in worker.batches:
        if batch.stage == "verify":
            chunks_since_verify = 0
        elif batch.stage == "prefill":
            chunks += 1
            limit = max(1, int(BUDGET * priority)) if batch.decoding else BUDGET
            assert 1 <= batch.rows <= limit
            chunks_since_verify = chunks_since_verify + 1 if batch.decoding else 0
            assert chunks_since_verify <= 1
    assert chunks > 12


def test_a_long_prompt_does_not_stall_a_running_request(tiny_pair: TinyPair) -> None:
    worker = make_worker(
        tiny_pair.verifier,
        tiny_pair.draft,
        max_num_batched_tokens=BUDGET,
        max_model_len=400,
        num_speculative_tokens=0,
    )
    results = {0: Result(), 1: Result()}
    worker.scheduler.submit(open_message(0, Request((5, 6, 7), max_tokens=60)))
    worker.step()
    worker.scheduler.submit(open_message(1, Request(prompts(1, 300)[0], max_tokens=1)))
    while not results[1].terminals:
        before = len(results[0].ids)
        chunks = worker.counters.prefill_forwards
        worker.step()
        worker.step()
        collect(worker, results)
        if worker.counters.prefill_forwards > chunks + 1:
            assert len(results[0].ids) > before
    # 300 prompt tokens in chunks of half the budget, one verify batch after each.
    assert len(results[0].ids) >= 300 // (BUDGET // 2) - 1


def test_no_forward_of_the_draft_without_speculation(tiny_pair: TinyPair) -> None:
    requests = [Request(prompt, 8, speculate=False) for prompt in prompts(4, 9)]
    worker = make_worker(tiny_pair.verifier, tiny_pair.draft, max_model_len=64)
    serve_together(worker, requests)
    assert worker.counters.draft_forwards == worker.counters.draft_prefill_forwards == 0
    assert worker.counters.verify_cycles == worker.counters.drafted_tokens == 0
    assert worker.counters.generated_tokens == 32


class Silent(FixedLength):
    """Decides against drafts, though it could have them."""

    def choose(self, batch: DecodeBatch) -> np.ndarray:
        assert (batch.limits <= self.max_length).all()
        return np.zeros_like(batch.limits)


@pytest.mark.parametrize("in_lane", [False, True])
def test_a_length_of_0_makes_no_forward_and_no_message(
    in_lane: bool, tiny_pair: TinyPair, rng: np.random.Generator
) -> None:
    requests = [Request(prompt, 8) for prompt in prompts(4, 9)]
    options = {"max_model_len": 64, "num_speculative_tokens": 4}
    if in_lane:
        worker: Worker = make_split(tiny_pair.verifier, tiny_pair.draft, ("draft",), rng, **options)
    else:
        worker = make_worker(tiny_pair.verifier, tiny_pair.draft, **options)
    worker.controller = worker.scheduler._drafts.controller = Silent(4, worker.table.num_slots)
    serve_together(worker, requests)
    assert worker.counters.draft_forwards == worker.counters.drafted_tokens == 0
    assert worker.counters.generated_tokens == 32
    edge = worker.handoffs["verify>draft"]
    assert (edge.messages, edge.local) == (0, 0)


@pytest.mark.parametrize("max_fed", [3, 20, 256])
@pytest.mark.parametrize("kv_layout", ["contiguous", "paged"])
def test_a_draft_that_has_not_read_a_prompt_catches_up(
    kv_layout: str,
    max_fed: int,
    tiny_pair: TinyPair,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The verifier drafts for itself, so that every draft is right if its cache is."""
    monkeypatch.setattr("pdv_mp.scheduling.draft_plan.FILLED_IN_SILENCE", 1)
    monkeypatch.setattr("pdv_mp.stages.draft.MAX_FED", max_fed)
    monkeypatch.setattr("pdv_mp.stages.draft.MAX_FED_TOGETHER", 2 * max_fed)
    options = {"max_model_len": 128, "num_speculative_tokens": 5, "kv_layout": kv_layout}
    worker = make_worker(tiny_pair.verifier, tiny_pair.verifier, **options)
    use_random_lengths(worker, 5, rng)
    beginning = prompts(1, 40)[0]
    requests = [Request((*beginning, *prompt), 20) for prompt in prompts(24, 9)]
    plain = [replace(request, speculate=False) for request in requests]
    expected = [result.ids for result in serve_together(worker, plain)]
    for arrivals in (1000, 0.2):
        results = run(worker, requests, rng, arrivals_per_step=arrivals)
        assert [result.ids for result in results] == expected
    counters = worker.counters
    assert 0 < counters.draft_prefill_forwards < counters.prefill_forwards
    assert counters.accepted_tokens == counters.drafted_tokens > 0
    assert counters.cached_tokens > 0


def test_decisions_are_visible(tiny_pair: TinyPair) -> None:
    requests = [Request(prompt, 30) for prompt in prompts(6, 9)]
    worker = make_worker(
        tiny_pair.verifier, tiny_pair.draft, max_model_len=64, num_speculative_tokens="auto"
    )
    serve_together(worker, requests)
    found = worker.info()["speculation"]
    counts = {"lengths", "switches", "explorations", "trials"}
    assert set(found) == {"method", "controllers", *counts}
    assert found["method"] == "draft_model"
    assert sum(found["lengths"].values()) > 5
    assert {int(length) for length in found["lengths"]} <= set(range(9))
    (controller,) = found["controllers"]
    assert controller["name"] == "goodput"
    assert 0 <= controller["length"] <= 8
    assert 0 < controller["acceptance"] < 1


def test_no_draft_is_made_that_could_not_be_emitted(tiny_pair: TinyPair) -> None:
    requests = [Request(prompt, tokens) for tokens in (1, 2, 3) for prompt in prompts(3, 9)]
    worker = make_worker(
        tiny_pair.verifier, tiny_pair.verifier, num_speculative_tokens=8, max_model_len=12
    )
    results = serve_together(worker, requests)
    for request, result in zip(requests, results, strict=True):
        # The first token comes from the prefill, the last of every cycle from the verifier.
        assert result.drafted == max(0, request.max_tokens - 2)
        assert len(result.ids) == request.max_tokens


@pytest.mark.parametrize("report", [True, False])
def test_timelines_add_up_and_come_only_when_asked_for(tiny_pair: TinyPair, report: bool) -> None:
    worker = make_worker(
        tiny_pair.verifier,
        tiny_pair.draft,
        max_num_seqs=2,
        max_num_batched_tokens=8,
    )
    requests = [Request(prompt, max_tokens=12) for prompt in prompts(8, 20)]
    results = run(worker, requests, np.random.default_rng(1), 1.0, report_timeline=report)
    for result in results:
        assert (result.timeline is not None) == report
        if result.timeline is None:
            continue
        timeline = Timeline.unpack(result.timeline)
        assert timeline.state == state_index("verify>front.encode")
        states = timeline.report(time.monotonic_ns())["states"]
        assert 3 <= states["prefill.compute"]["n"] <= 20
        cycles = states["verify.compute"]["n"]
        assert states["draft.compute"]["n"] in (cycles, cycles - 1)
        for name in ("prefill.queue", "prefill.batch", "verify.queue", "verify.publish"):
            assert states[name]["n"] >= 1, name
    if report:
        packed = [Timeline.unpack(r.timeline) for r in results if r.timeline is not None]
        busy = sum(t.nanoseconds[state_index("draft.busy")] for t in packed)
        assert busy > 0, "decoding requests must wait for the chunks of later prompts"


def test_cancelling_in_every_phase(tiny_pair: TinyPair) -> None:
    worker = make_worker(
        tiny_pair.verifier, tiny_pair.draft, max_num_seqs=1, max_num_batched_tokens=4
    )
    results = {key: Result() for key in range(4)}
    for key in results:
        worker.scheduler.submit(open_message(key, Request(prompts(1, 10, key)[0], max_tokens=40)))
    for _ in range(6):
        worker.step()
    # 0 is running; one more is admitted (1.2 x 1, rounded up), the others wait.
    assert worker.scheduler.num_running == 1
    assert worker.scheduler.num_waiting == 2
    worker.close([3, 1, 0, 99])
    while worker.step():
        collect(worker, results)
    collect(worker, results)
    assert [results[key].finish for key in range(4)] == [
        Finish.ABORT,
        Finish.ABORT,
        Finish.LENGTH,
        Finish.ABORT,
    ]
    assert len(results[0].ids) < 40
    assert all(result.terminals == 1 for result in results.values())
    assert worker.pools.slots_in_use == worker.pools.blocks_in_use == 0


def test_info_is_plain_data(tiny_pair: TinyPair) -> None:
    import msgpack

    worker = make_worker(tiny_pair.verifier, tiny_pair.draft, max_model_len=64)
    serve_together(worker, [Request(prompts(1, 5)[0], max_tokens=6)])
    info = msgpack.unpackb(msgpack.packb(worker.info()))
    assert info["counters"]["generated_tokens"] == 6
    assert info["pools"]["blocks_in_use"] == 0
    assert {batch["stage"] for batch in info["batches"]} == {"prefill", "draft", "verify"}


@pytest.mark.parametrize(
    ("stages", "groups"), [(("prefill", "draft"), 2), (("draft",), 1), (("draft",), 2)]
)
def test_those_that_do_not_draft_keep_nobody_waiting(
    stages: tuple[str, ...], groups: int, tiny_pair: TinyPair, rng: np.random.Generator
) -> None:
    """Their cycles need nobody else, so that the next could follow at once, again and again."""
    options = {"groups": groups, "max_model_len": 128}
    split = make_split(tiny_pair.verifier, tiny_pair.draft, stages, rng, 0.0, **options)
    results = {0: Result(), 1: Result()}
    for key, prompt in enumerate(prompts(2, 8)):
        request = Request(prompt, max_tokens=100, speculate=False)
        split.scheduler.submit(open_message(key, request))
        while len(results[key].ids) < 5:
            split.step()
            collect(split, results)
            assert not results[0].terminals, "the second waited until the first had ended"
    split.close([0, 1])
    while any(not result.terminals for result in results.values()):
        split.step()
        collect(split, results)
