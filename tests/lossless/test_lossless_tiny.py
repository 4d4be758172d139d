"""Losslessness on tiny random models: ten thousand requests, fewer in CI, every token judged.

The oracle is a transformers forward over prompt + output (see ``oracle.py``). Every group of
requests is also decoded without speculation and the two outputs are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_driver import Request, Result, make_worker, run
from oracle import TOLERANCE, Oracle, check_lossless, shortfall
from random_lengths import use_random_lengths
from tiny_model import VOCABULARY, TinyPair

from pdv_mp.stages.messages import Proposal, Verdict
from pdv_mp.wire.engine import Finish

FEW, MANY = 200, 1300
"""Requests per case. More, under constant pressure, are in test_lossless_pressure.py."""

# draft length, batch, prefill tokens per chunk, prefill priority, block size, KV bytes, layout
CASES = {
    "k1-batch32": (1, 32, 64, 0.5, 16, 1 << 20, "contiguous"),
    "k2-batch5-small-chunks": (2, 5, 7, 0.3, 4, 1 << 20, "contiguous"),
    "k3-batch32-paged": (3, 32, 48, 0.5, 8, 1 << 20, "paged"),
    "k4-batch16-tight-memory": (4, 16, 32, 1.0, 16, 1 << 18, "contiguous"),
    "k5-batch1": (5, 8, 16, 0.5, 1, 1 << 20, "contiguous"),
    "k6-batch32-one-token-chunks": (6, 32, 3, 0.5, 16, 1 << 20, "contiguous"),
    "k7-batch13-paged-tight": (7, 13, 64, 0.5, 4, 1 << 18, "paged"),
    "k8-batch32": (8, 32, 512, 0.5, 16, 1 << 20, "contiguous"),
    "auto-batch16": (8, 16, 64, 0.5, 16, 1 << 20, "contiguous"),
    "random-batch16-tight": (6, 16, 32, 0.5, 4, 1 << 18, "contiguous"),
    "random-batch32-paged": (5, 32, 64, 0.5, 8, 1 << 20, "paged"),
}


def random_requests(rng: np.random.Generator, count: int, vocabulary: int) -> list[Request]:
    """Prompts of 1 to 60 tokens, outputs of 1 to 20; half greedy, half sampled in many ways."""
    requests = []
    for _ in range(count):
        length = int(rng.choice([1, 2, 3, int(rng.integers(4, 24)), int(rng.integers(24, 60))]))
        sampled = rng.random() < 0.5
        requests.append(
            Request(
                prompt=tuple(rng.integers(0, vocabulary, length).tolist()),
                max_tokens=int(rng.integers(1, 21)),
                temperature=float(rng.choice([0.5, 0.7, 1.0, 1.3])) if sampled else 0.0,
                top_k=int(rng.choice([0, 1, 5, 40])),
                top_p=float(rng.choice([1.0, 0.95, 0.7, 0.1])),
                min_p=float(rng.choice([0.0, 0.0, 0.02, 0.2])),
                seed=int(rng.integers(0, 2**53)),
                stop_ids=tuple(rng.integers(0, vocabulary, int(rng.integers(0, 4))).tolist()),
                speculate=bool(rng.random() < 0.9),
            )
        )
    return requests


def serve(folder: Path, draft: Path, case: str, requests: list[Request], seed: int) -> list[Result]:
    """The lengths of ``random`` cases are drawn anew in each cycle, those of ``auto`` chosen."""
    length, batch, chunk, priority, block_size, memory, layout = CASES[case]
    worker = make_worker(
        folder,
        draft,
        num_speculative_tokens="auto" if case.startswith("auto") else length,
        max_speculative_tokens=max(1, length),
        max_num_seqs=batch,
        max_num_batched_tokens=chunk,
        prefill_priority=priority,
        block_size=block_size,
        kv_cache_memory=memory,
        kv_layout=layout,
        max_model_len=128,
    )
    if case.startswith("random"):
        use_random_lengths(worker, length, np.random.default_rng(seed))
    return run(worker, requests, np.random.default_rng(seed), arrivals_per_step=3.0)


@pytest.fixture(scope="module")
def oracle(tiny_pair: TinyPair) -> Oracle:
    return Oracle(tiny_pair.verifier)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_every_token_is_the_verifiers_own(
    case: str, count: int, tiny_pair: TinyPair, oracle: Oracle, report_line: Callable[[str], None]
) -> None:
    seed = 1 + list(CASES).index(case)
    requests = random_requests(np.random.default_rng(seed), count, VOCABULARY)
    results = serve(tiny_pair.verifier, tiny_pair.draft, case, requests, seed)
    alone = [replace(request, speculate=False) for request in requests]
    plain = serve(tiny_pair.verifier, tiny_pair.draft, case, alone, seed + 100)
    check_lossless(case, oracle, requests, results, plain, report_line)


@pytest.mark.parametrize("length", [1, 4, 8])
def test_the_verifier_as_its_own_draft_is_wrong_at_near_ties_only(
    length: int, tiny_pair: TinyPair, oracle: Oracle, report_line: Callable[[str], None]
) -> None:
    requests = random_requests(np.random.default_rng(length), 300, VOCABULARY)
    requests = [replace(request, stop_ids=(), speculate=True) for request in requests]
    worker = make_worker(
        tiny_pair.verifier, tiny_pair.verifier, num_speculative_tokens=length, max_model_len=128
    )
    mismatches: list[tuple[int, int, int, int]] = []
    verify = worker.verify.run

    def watched(proposal: Proposal) -> Verdict:
        verdict = verify(proposal)
        for row in np.flatnonzero(verdict.accepted < proposal.lengths):
            accepted = int(verdict.accepted[row])
            mismatches.append(
                (
                    int(worker.table.request[proposal.slots[row]]),
                    int(proposal.base[row]) + accepted,
                    int(proposal.ids[row, accepted]),
                    int(verdict.next_ids[row]),
                )
            )
        return verdict

    worker.verify.run = watched  # type: ignore[method-assign]
    results = run(worker, requests, np.random.default_rng(9))
    assert oracle.judge(requests, results).wrong == []
    assert worker.counters.drafted_tokens > 1000
    for key, position, drafted, own in mismatches:
        (rows,) = oracle.logits([requests[key]], [results[key]])
        place = position - len(requests[key].prompt)
        for token in (drafted, own):
            assert shortfall(requests[key], rows, place, token) <= TOLERANCE
    report_line(
        f"own draft, k = {length}: {worker.counters.drafted_tokens} drafted, "
        f"{len(mismatches)} mismatches, all near-ties"
    )


def test_cancels_leave_the_others_alone(tiny_pair: TinyPair, oracle: Oracle) -> None:
    requests = random_requests(np.random.default_rng(77), 400, VOCABULARY)
    worker = make_worker(
        tiny_pair.verifier, tiny_pair.draft, max_num_seqs=8, max_model_len=128, block_size=4
    )
    results = run(worker, requests, np.random.default_rng(78), cancel_probability=0.2)
    served = [i for i, result in enumerate(results) if result.finish is not Finish.ABORT]
    assert 50 < len(served) < 395
    verdicts = oracle.judge([requests[i] for i in served], [results[i] for i in served])
    assert verdicts.wrong == []
