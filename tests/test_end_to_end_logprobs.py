"""Log-probabilities from a real server, by every client, against transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch
from oracle import Oracle
from server_process import ServerProcess
from tiny_model import TinyPair

from pdv_mp import TokenLogprob
from pdv_mp.client.client import AsyncClient, Client, Completion
from pdv_mp.sampling_params import SamplingParams

TOLERANCE = 1e-4
PROMPTS = ["def add(first,", "class Point:\n    def", "x" * 150, "for index in range(10):"]


@pytest.fixture(scope="module")
def oracle(tiny_pair: TinyPair) -> Oracle:
    return Oracle(tiny_pair.verifier)


def params(index: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=30,
        temperature=0.9 * (index % 2),
        top_k=40,
        seed=index,
        ignore_eos=True,
        speculate=index != 3,
        logprobs=(4, 0, 20, 1)[index],
        prompt_logprobs=(0, 20, 3, 1)[index],
    )


def check_entries(found: Sequence[TokenLogprob] | None, ids: list[int], rows: torch.Tensor) -> None:
    assert found is not None
    assert [entry.id for entry in found] == ids
    for entry, row in zip(found, rows, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.id]), abs=TOLERANCE)
        best = row.topk(len(entry.top)).values.tolist() if entry.top else []
        assert [logprob for _, logprob in entry.top] == pytest.approx(best, abs=TOLERANCE)
        assert [float(row[id]) for id, _ in entry.top] == pytest.approx(best, abs=TOLERANCE)


def check(oracle: Oracle, prompt: list[int], index: int, completion: Completion) -> None:
    with torch.inference_mode():
        logits = oracle.model(input_ids=torch.tensor([[*prompt, *completion.ids]])).logits[0]
    rows = logits.double().log_softmax(dim=-1)
    asked = params(index)
    check_entries(completion.logprobs, completion.ids, rows[len(prompt) - 1 : -1])
    check_entries(completion.prompt_logprobs, prompt[1:], rows[: len(prompt) - 1])
    assert {len(entry.top) for entry in completion.logprobs or []} == {asked.logprobs}
    assert {len(entry.top) for entry in completion.prompt_logprobs or []} == {asked.prompt_logprobs}


def test_the_blocking_client(tiny_server: ServerProcess, oracle: Oracle) -> None:
    with Client(tiny_server.ready["endpoint"]) as client:
        streams = [client.generate(prompt, params(i)) for i, prompt in enumerate(PROMPTS)]
        for index, (prompt, stream) in enumerate(zip(PROMPTS, streams, strict=True)):
            chunks = list(stream)
            completion = stream.result()
            check(oracle, client.tokenize(prompt), index, completion)
            assert all(len(chunk.logprobs or []) == len(chunk.ids) for chunk in chunks)
            joined = [entry for chunk in chunks for entry in chunk.logprobs or []]
            assert joined == completion.logprobs
            again = client.complete(prompt, params(index))
            assert again.ids == completion.ids
            check(oracle, client.tokenize(prompt), index, again)
        plain = client.generate("x", max_tokens=5)
        assert all(chunk.logprobs is None for chunk in plain)
        assert plain.result().logprobs is plain.result().prompt_logprobs is None
        assert client.complete("x", max_tokens=5).logprobs is None


def test_the_asyncio_client(tiny_server: ServerProcess, oracle: Oracle) -> None:
    async def use() -> None:
        async with AsyncClient(tiny_server.ready["ipc"]) as client:
            completions = await asyncio.gather(
                *(client.complete(prompt, params(i)) for i, prompt in enumerate(PROMPTS))
            )
            for index, (prompt, completion) in enumerate(zip(PROMPTS, completions, strict=True)):
                ids = await client.tokenize(prompt)
                check(oracle, ids, index, completion)
                stream = await client.generate(prompt, params(index))
                joined = [entry async for chunk in stream for entry in chunk.logprobs or []]
                check(oracle, ids, index, await stream.result())
                assert [entry.id for entry in joined] == completion.ids

    asyncio.run(use())


def test_a_stop_text_cuts_them(tiny_server: ServerProcess) -> None:
    wanted = SamplingParams(max_tokens=60, ignore_eos=True, logprobs=2)
    with Client(tiny_server.ready["endpoint"]) as client:
        whole = client.complete("class Point:", wanted)
        stop = whole.text[10:13]
        for stream in (True, False):
            cut = client.generate(
                "class Point:",
                stream=stream,
                max_tokens=60,
                ignore_eos=True,
                logprobs=2,
                stop=[stop],
            ).result()
            assert cut.finish == "stop"
            assert cut.logprobs is not None
            assert whole.logprobs is not None
            assert [entry.id for entry in cut.logprobs] == cut.ids
            for entry, other in zip(cut.logprobs, whole.logprobs, strict=False):
                assert entry.logprob == pytest.approx(other.logprob, abs=TOLERANCE)
