"""Losslessness where memory is short and prompts repeat: ten thousand requests, a sixth in CI.

The KV pools hold two or three of the longest requests, so that sequences are pre-empted all the
time and go on later, in other slots, from what the prefix cache has kept of them. Every token is
judged, and the outputs are those of plain decoding with plenty of memory and no prefix cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from common_beginnings import requests_with_common_beginnings
from engine_driver import Request, make_worker, run
from oracle import Oracle, check_lossless
from tiny_model import VOCABULARY, TinyPair

from pdv_mp.wire.engine import Finish

PARTS = 6
REQUESTS_PER_PART = 209
MAX_LEN = 128
KV_BYTES_PER_TOKEN = 384


@dataclass(frozen=True)
class Case:
    """An engine with room for ``tokens`` tokens."""

    draft_length: int
    batch: int
    chunk: int
    block_size: int
    tokens: int
    layout: str
    prefix_caching: bool = True


CASES = {
    "k1-contiguous": Case(1, 16, 64, 4, 320, "contiguous"),
    "k2-paged": Case(2, 16, 64, 4, 200, "paged"),
    "k3-contiguous-small-chunks": Case(3, 16, 24, 4, 256, "contiguous"),
    "k4-paged-large-blocks": Case(4, 16, 48, 16, 256, "paged"),
    "k5-contiguous-one-token-blocks": Case(5, 16, 32, 1, 320, "contiguous"),
    "k6-paged-one-token-blocks": Case(6, 16, 32, 1, 160, "paged"),
    "k7-paged-no-prefix-cache": Case(7, 16, 64, 4, 200, "paged", False),
    "k8-contiguous-no-prefix-cache": Case(8, 16, 64, 4, 200, "contiguous", False),
}
QUICK = tuple(name for name in CASES if name.startswith(("k2", "k3", "k5", "k6", "k8")))
"""Of these the first part is no slow test."""


@pytest.fixture(scope="module")
def oracle(tiny_pair: TinyPair) -> Oracle:
    return Oracle(tiny_pair.verifier)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        pytest.param(name, part, marks=[] if part == 0 and name in QUICK else [pytest.mark.slow])
        for name in CASES
        for part in range(PARTS)
    ],
)
def test_short_memory_and_common_beginnings_change_nothing(
    name: str, part: int, tiny_pair: TinyPair, oracle: Oracle, report_line: Callable[[str], None]
) -> None:
    case = CASES[name]
    seed = 1000 + PARTS * list(CASES).index(name) + part
    requests = requests_with_common_beginnings(np.random.default_rng(seed), REQUESTS_PER_PART)
    worker = make_worker(
        tiny_pair.verifier,
        tiny_pair.draft,
        num_speculative_tokens=case.draft_length,
        max_num_seqs=case.batch,
        max_num_batched_tokens=case.chunk,
        block_size=case.block_size,
        kv_cache_memory=case.tokens * KV_BYTES_PER_TOKEN,
        kv_layout=case.layout,
        enable_prefix_caching=case.prefix_caching,
        max_model_len=MAX_LEN,
    )
    assert worker.pools.max_tokens == case.tokens // case.block_size * case.block_size
    results = run(worker, requests, np.random.default_rng(seed), arrivals_per_step=2.0)
    plenty = make_worker(
        tiny_pair.verifier,
        None,
        max_num_seqs=32,
        kv_layout="contiguous",
        enable_prefix_caching=False,
        max_model_len=MAX_LEN,
    )
    plain = run(plenty, requests, np.random.default_rng(seed), arrivals_per_step=8.0)
    assert plenty.counters.preemptions == 0
    check_lossless(name, oracle, requests, results, plain, report_line)
    counters = worker.counters
    report_line(
        f"{name}: {counters.preemptions} pre-emptions, {counters.cached_tokens} tokens from the "
        f"prefix cache, {counters.prefill_tokens} computed"
    )
    assert counters.preemptions > REQUESTS_PER_PART / 10
    assert (counters.cached_tokens > counters.prefill_tokens / 8) == case.prefix_caching
    assert worker.pools.blocks_free + worker.pools.blocks_cached == worker.pools.num_blocks


def test_cancels_while_memory_is_short(tiny_pair: TinyPair, oracle: Oracle) -> None:
    requests = requests_with_common_beginnings(np.random.default_rng(5), 400)
    worker = make_worker(
        tiny_pair.verifier,
        tiny_pair.draft,
        max_num_seqs=12,
        block_size=4,
        kv_cache_memory=256 * KV_BYTES_PER_TOKEN,
        max_model_len=MAX_LEN,
    )
    results = run(worker, requests, np.random.default_rng(6), cancel_probability=0.2)
    served = [i for i, result in enumerate(results) if result.finish is not Finish.ABORT]
    assert 50 < len(served) < 395
    assert worker.counters.preemptions > 20
    chosen = [requests[i] for i in served]
    assert oracle.judge(chosen, [results[i] for i in served]).wrong == []


def test_a_resumed_request_takes_over_its_own_rows(tiny_pair: TinyPair) -> None:
    """Two requests that do not fit together: the second gives way, and when it comes back most of
    what it had is still in the cache."""
    rng = np.random.default_rng(8)
    requests = [
        Request(tuple(rng.integers(0, VOCABULARY, 20).tolist()), max_tokens=60) for _ in range(2)
    ]
    tokens = {}
    for prefix_caching in (True, False):
        worker = make_worker(
            tiny_pair.verifier,
            tiny_pair.draft,
            block_size=4,
            kv_cache_memory=120 * KV_BYTES_PER_TOKEN,
            enable_prefix_caching=prefix_caching,
            kv_layout="paged",
            max_model_len=MAX_LEN,
        )
        results = run(worker, requests, np.random.default_rng(1), arrivals_per_step=4.0)
        assert worker.counters.preemptions >= 1
        tokens[prefix_caching] = [result.ids for result in results]
        if prefix_caching:
            assert worker.counters.cached_tokens >= 20
        else:
            assert worker.counters.cached_tokens == 0
    assert tokens[True] == tokens[False]
    plain = [replace(request, speculate=False) for request in requests]
    worker = make_worker(tiny_pair.verifier, tiny_pair.draft, max_model_len=MAX_LEN)
    results = run(worker, plain, np.random.default_rng(1))
    assert tokens[True] == [result.ids for result in results]


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_drafts_after_a_cached_beginning_are_those_after_a_computed_one(
    layout: str, tiny_pair: TinyPair
) -> None:
    """The draft's rows do not decide the output, so they are judged by what it proposes."""
    requests = requests_with_common_beginnings(np.random.default_rng(11), 70)
    outcomes = []
    for prefix_caching in (True, False):
        worker = make_worker(
            tiny_pair.verifier,
            tiny_pair.draft,
            max_num_seqs=1,
            block_size=4,
            kv_layout=layout,
            enable_prefix_caching=prefix_caching,
            max_model_len=MAX_LEN,
        )
        results = run(worker, requests, np.random.default_rng(12), arrivals_per_step=0.5)
        assert (worker.counters.cached_tokens > 500) == prefix_caching
        outcomes.append([(result.ids, result.drafted, result.accepted) for result in results])
    differing = sum(one != other for one, other in zip(*outcomes, strict=True))
    assert differing == 0
