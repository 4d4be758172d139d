"""Rejection sampling in the engine, beside the default rule; its law: test_distribution.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from engine_driver import Request, Result, make_worker, run
from oracle import EQUAL_SHARE, Oracle, compare
from tiny_model import VOCABULARY, TinyPair

from pdv_mp.workers.worker import Worker

K = 4


def random_requests(rng: np.random.Generator, count: int) -> list[Request]:
    """Greedy and sampled in turns."""
    return [
        Request(
            prompt=tuple(rng.integers(0, VOCABULARY, int(rng.integers(1, 40))).tolist()),
            max_tokens=int(rng.integers(1, 33)),
            temperature=float(rng.choice([0.5, 0.8, 1.0])) if index % 2 else 0.0,
            top_k=int(rng.choice([0, 20])),
            top_p=float(rng.choice([1.0, 0.9])),
            min_p=float(rng.choice([0.0, 0.05])),
            seed=int(rng.integers(0, 2**53)),
            speculate=bool(rng.random() < 0.9),
        )
        for index in range(count)
    ]


def serve(
    pair: TinyPair, acceptance: str, requests: list[Request], seed: int = 0, **options: object
) -> tuple[list[Result], Worker]:
    settings = {"num_speculative_tokens": K, "max_model_len": 96, "max_num_seqs": 16, **options}
    worker = make_worker(pair.verifier, pair.draft, acceptance=acceptance, **settings)
    return run(worker, requests, np.random.default_rng(seed), arrivals_per_step=4.0), worker


def check_equal(
    pair: TinyPair,
    requests: list[Request],
    one: list[Result],
    other: list[Result],
    report_line: Callable[[str], None],
) -> None:
    """But for near-ties."""
    differences = compare(Oracle(pair.verifier), requests, one, other)
    report_line(f"{len(differences)} of {len(requests)} outputs differ")
    assert all(difference.is_near_tie for difference in differences)
    assert len(differences) <= (1 - EQUAL_SHARE) * len(requests)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return random_requests(np.random.default_rng(5), 400)


def test_greedy_requests_beside_sampled_ones_are_served_as_by_the_default_rule(
    tiny_pair: TinyPair, requests: list[Request], report_line: Callable[[str], None]
) -> None:
    ours, _ = serve(tiny_pair, "rejection", requests)
    theirs, _ = serve(tiny_pair, "gumbel", requests)
    greedy = [i for i, request in enumerate(requests) if request.temperature == 0]
    check_equal(
        tiny_pair,
        [requests[i] for i in greedy],
        [ours[i] for i in greedy],
        [theirs[i] for i in greedy],
        report_line,
    )
    equal = [i for i in greedy if ours[i].ids == theirs[i].ids]
    assert [ours[i].accepted for i in equal] == [theirs[i].accepted for i in equal]
    sampled = [i for i, request in enumerate(requests) if request.temperature > 0]
    drafted = sum(ours[i].drafted for i in sampled)
    assert 0.1 < sum(ours[i].accepted for i in sampled) / drafted < 0.95
    assert any(ours[i].ids != theirs[i].ids for i in sampled)


def test_without_speculation_both_rules_give_the_same_text(
    tiny_pair: TinyPair, requests: list[Request], report_line: Callable[[str], None]
) -> None:
    plain = [replace(request, speculate=False) for request in requests]
    ours, _ = serve(tiny_pair, "rejection", plain)
    theirs, _ = serve(tiny_pair, "gumbel", plain, seed=1)
    check_equal(tiny_pair, plain, ours, theirs, report_line)


def test_a_seeds_text_does_not_depend_on_the_batch(
    tiny_pair: TinyPair, requests: list[Request]
) -> None:
    """It does depend on the draft length, unlike the default rule's."""
    requests = requests[:120]
    first, _ = serve(tiny_pair, "rejection", requests)
    other, _ = serve(
        tiny_pair, "rejection", requests, seed=1, max_num_seqs=5, max_num_batched_tokens=16
    )
    longer, _ = serve(tiny_pair, "rejection", requests, num_speculative_tokens=K + 1)
    # Rounding decides now and then, in a draft's law too, which the oracle does not compute.
    same = sum(one.ids == two.ids for one, two in zip(first, other, strict=True))
    assert same >= len(requests) - 2
    same = sum(one.ids == two.ids for one, two in zip(first, longer, strict=True))
    assert len(requests) / 2 < same < len(requests) - 10


def test_the_verifier_as_its_own_draft_is_always_kept(
    tiny_pair: TinyPair, requests: list[Request]
) -> None:
    same = TinyPair(tiny_pair.verifier, tiny_pair.verifier)
    _, worker = serve(same, "rejection", requests)
    assert worker.counters.accepted_tokens >= 0.999 * worker.counters.drafted_tokens > 1000
