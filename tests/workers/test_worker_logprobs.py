"""Log-probabilities of the engine against one transformers forward over prompt + output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_driver import Logprob, Request, Result, collect, make_worker, open_message, run
from oracle import Oracle
from tiny_model import VOCABULARY, TinyPair

from pdv_mp.stages import prefill
from pdv_mp.stages import verify as verify_stage
from pdv_mp.stages.logprobs import emitted_logprobs
from pdv_mp.wire.engine import Finish

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def oracle(tiny_pair: TinyPair) -> Oracle:
    return Oracle(tiny_pair.verifier)


def random_requests(count: int, rng: np.random.Generator) -> list[Request]:
    def width() -> int | None:
        return None if rng.random() < 0.4 else int(rng.choice([0, 1, 5, 20]))

    return [
        Request(
            prompt=tuple(rng.integers(1, VOCABULARY, int(rng.integers(1, 60))).tolist()),
            max_tokens=int(rng.integers(1, 30)),
            temperature=float(rng.choice([0.0, 0.8, 1.5])),
            top_k=int(rng.choice([0, 10])),
            top_p=float(rng.choice([1.0, 0.8])),
            seed=int(rng.integers(0, 2**53)),
            stop_ids=tuple(rng.integers(1, VOCABULARY, 3).tolist()),
            speculate=bool(rng.random() < 0.8),
            logprobs=width(),
            prompt_logprobs=width(),
        )
        for _ in range(count)
    ]


def check_entries(found: Sequence[Logprob], ids: Sequence[int], rows: torch.Tensor) -> None:
    """``rows`` [len(ids), V]: the model's log-probabilities of what may stand at each place."""
    assert len(found) == len(ids) == len(rows)
    for entry, id, row in zip(found, ids, rows, strict=True):
        assert entry.chosen == pytest.approx(float(row[id]), abs=TOLERANCE)
        best = row.sort(descending=True).values
        for place, (other, logprob) in enumerate(entry.top):
            assert logprob == pytest.approx(float(row[other]), abs=TOLERANCE)
            assert logprob == pytest.approx(float(best[place]), abs=TOLERANCE), "not the best ids"
        assert len({other for other, _ in entry.top}) == len(entry.top)


def check(oracle: Oracle, requests: Sequence[Request], results: Sequence[Result]) -> None:
    for request, result in zip(requests, results, strict=True):
        text = torch.tensor([[*request.prompt, *result.ids]])
        with torch.inference_mode():
            rows = oracle.model(input_ids=text).logits[0].double().log_softmax(dim=-1)
        prompt = len(request.prompt)
        for width, found, ids, part in (
            (request.logprobs, result.logprobs, result.ids, rows[prompt - 1 : -1]),
            (
                request.prompt_logprobs,
                result.prompt_logprobs,
                request.prompt[1:],
                rows[: prompt - 1],
            ),
        ):
            if width is None:
                assert found == []
            else:
                check_entries(found, ids, part)
                assert all(len(entry.top) == width for entry in found)


@pytest.mark.parametrize(
    ("drafts", "chunk", "batch"), [(1, 7, 8), (3, 13, 1), (5, 64, 16), (8, 5, 6), (0, 16, 8)]
)
def test_log_probabilities_are_those_of_transformers(
    tiny_pair: TinyPair, oracle: Oracle, drafts: int, chunk: int, batch: int
) -> None:
    rng = np.random.default_rng(100 + drafts)
    requests = random_requests(40, rng)
    worker = make_worker(
        tiny_pair.verifier,
        tiny_pair.draft,
        num_speculative_tokens=drafts,
        max_num_batched_tokens=chunk,
        max_num_seqs=batch,
        max_model_len=128,
    )
    results = run(worker, requests, rng)
    assert oracle.judge(requests, results).wrong == []
    check(oracle, requests, results)
    assert sum(result.accepted for result in results) > 0 or not drafts


def test_pre_emption_and_shared_prefixes_leave_them_whole(
    tiny_pair: TinyPair, oracle: Oracle
) -> None:
    rng = np.random.default_rng(21)
    shared = tuple(rng.integers(1, VOCABULARY, 40).tolist())
    requests = [
        replace(request, prompt=shared + request.prompt[:20], max_tokens=35, stop_ids=())
        for request in random_requests(40, rng)
    ]
    worker = make_worker(
        tiny_pair.verifier,
        tiny_pair.draft,
        kv_cache_memory=1 << 16,
        max_num_batched_tokens=24,
        max_model_len=96,
    )
    results = run(worker, requests, rng)
    assert worker.counters.preemptions > 0
    assert worker.counters.cached_tokens > 0
    assert all(result.finish is Finish.LENGTH for result in results)
    check(oracle, requests, results)


def test_another_acceptance_rule(tiny_pair: TinyPair, oracle: Oracle) -> None:
    rng = np.random.default_rng(31)
    requests = random_requests(40, rng)
    worker = make_worker(
        tiny_pair.verifier, tiny_pair.draft, acceptance="rejection", max_model_len=128
    )
    results = run(worker, requests, rng)
    assert sum(result.accepted for result in results) > 0
    check(oracle, requests, results)


def test_asking_changes_no_token(tiny_pair: TinyPair) -> None:
    def serve(asked: Callable[[Request], Request]) -> list[list[int]]:
        requests = [asked(r) for r in random_requests(30, np.random.default_rng(7))]
        worker = make_worker(tiny_pair.verifier, tiny_pair.draft, max_num_batched_tokens=11)
        results = run(worker, requests, np.random.default_rng(8))
        return [result.ids for result in results]

    plain = serve(lambda request: replace(request, logprobs=None, prompt_logprobs=None))
    assert serve(lambda request: replace(request, logprobs=20, prompt_logprobs=2)) == plain


def test_only_the_rows_of_those_who_ask_are_computed(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        return emitted_logprobs(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(verify_stage, "emitted_logprobs", counted)
    requests = [
        replace(request, logprobs=None) for request in random_requests(12, np.random.default_rng(3))
    ]
    worker = make_worker(tiny_pair.verifier, tiny_pair.draft)
    logit_rows = []
    forward = worker.prefill._target.transformer.forward

    def watched(batch: object, *arguments: object) -> torch.Tensor:
        logits: torch.Tensor = forward(batch, *arguments)  # type: ignore[arg-type]
        logit_rows.append(len(logits))
        return logits

    for request in requests:
        worker.scheduler.submit(
            open_message(len(logit_rows), replace(request, prompt_logprobs=None))
        )
        worker.prefill._target.transformer.forward = watched  # type: ignore[method-assign]
        worker.step()
        assert logit_rows[-1] == 1
        while worker.step():
            pass
    assert calls == []


def test_a_large_vocabulary_makes_small_chunks(
    tiny_pair: TinyPair, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefill, "MAX_PROMPT_LOGITS", 9 * VOCABULARY)
    rng = np.random.default_rng(11)
    requests = random_requests(20, rng)
    worker = make_worker(tiny_pair.verifier, tiny_pair.draft, max_model_len=128)
    results = run(worker, requests, rng, arrivals_per_step=5)
    check(oracle, requests, results)
    assert oracle.judge(requests, results).wrong == []


def test_a_request_that_is_cancelled_keeps_what_it_got(tiny_pair: TinyPair, oracle: Oracle) -> None:
    worker = make_worker(tiny_pair.verifier, tiny_pair.draft, max_num_batched_tokens=4)
    results = {key: Result() for key in range(2)}
    request = Request(tuple(range(5, 35)), 40, logprobs=2, prompt_logprobs=1)
    for key in results:
        worker.scheduler.submit(open_message(key, request))
    for _ in range(3):
        worker.step()
    worker.close([1])
    while not results[0].terminals:
        worker.step()
        collect(worker, results)
    assert results[1].finish is Finish.ABORT
    assert len(results[1].prompt_logprobs) < len(request.prompt) - 1
    check(oracle, [request], [results[0]])
