"""The same tokens whichever processes host the stages, and whichever of them die on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from common_beginnings import requests_with_common_beginnings
from engine_driver import make_worker, run
from oracle import Oracle, check_lossless
from random_lengths import use_random_lengths
from split_engine import make_split
from tiny_model import TinyPair

FEW, MANY = 100, 400
"""Requests per case."""

UNDISTURBED = ("pd", "pdv", "pdv-paged")
"""Cases that are quick without deaths as well."""

CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "pd": (("prefill",), {"num_speculative_tokens": 3}),
    "pdv": (("prefill", "draft"), {"num_speculative_tokens": 4}),
    "pdv-paged": (("prefill", "draft"), {"num_speculative_tokens": 2, "kv_layout": "paged"}),
    "pdv, two groups": (("prefill", "draft"), {"num_speculative_tokens": 3, "groups": 2}),
    "two groups, tight memory": (
        ("draft",),
        {"num_speculative_tokens": 4, "kv_cache_memory": 200 * 384, "block_size": 4, "groups": 2},
    ),
    "draft-ahead": (("prefill", "draft"), {"num_speculative_tokens": 2, "draft_ahead": True}),
    "draft-ahead, tight paged memory": (
        ("prefill", "draft"),
        {
            "num_speculative_tokens": 3,
            "draft_ahead": True,
            "kv_layout": "paged",
            "kv_cache_memory": 200 * 384,
            "block_size": 4,
        },
    ),
    "hybrid": (("prefill", "draft"), {"num_speculative_tokens": 3, "hybrid": True}),
    "draft apart": (("draft",), {"num_speculative_tokens": 5}),
    "pdv, tight memory": (
        ("prefill", "draft"),
        {"num_speculative_tokens": 6, "kv_cache_memory": 200 * 384, "block_size": 4},
    ),
    "pd, copy": (("prefill",), {"num_speculative_tokens": 3, "kv_handoff": "copy"}),
    "pd, handle": (("prefill",), {"num_speculative_tokens": 3, "kv_handoff": "handle"}),
    "pdv, copy": (("prefill", "draft"), {"num_speculative_tokens": 4, "kv_handoff": "copy"}),
    "pdv, handle, two groups": (
        ("prefill", "draft"),
        {"num_speculative_tokens": 3, "kv_handoff": "handle", "groups": 2},
    ),
    "pdv-paged, handle, draft-ahead": (
        ("prefill", "draft"),
        {
            "num_speculative_tokens": 2,
            "kv_layout": "paged",
            "kv_handoff": "handle",
            "draft_ahead": True,
        },
    ),
    "pdv-paged, copy, tight memory": (
        ("prefill", "draft"),
        {
            "num_speculative_tokens": 4,
            "kv_layout": "paged",
            "kv_handoff": "copy",
            "kv_cache_memory": 2 * 200 * 384,
            "block_size": 4,
        },
    ),
    "pdv, handle, tight memory": (
        ("prefill", "draft"),
        {
            "num_speculative_tokens": 6,
            "kv_handoff": "handle",
            "kv_cache_memory": 2 * 200 * 384,
            "block_size": 4,
        },
    ),
    "auto, two groups": (
        ("prefill", "draft"),
        {"num_speculative_tokens": "auto", "max_speculative_tokens": 5, "groups": 2},
    ),
    "random lengths, draft-ahead, two groups": (
        ("prefill", "draft"),
        {"num_speculative_tokens": 4, "draft_ahead": True, "groups": 2},
    ),
    "random lengths, tight memory": (
        ("prefill", "draft"),
        {"num_speculative_tokens": 6, "kv_cache_memory": 200 * 384, "block_size": 4},
    ),
}


def each_case() -> Iterator[object]:
    """Undisturbed and with deaths of lanes, few requests and many. With deaths everything happens
    that happens without, so most of the rest takes its time among the slow tests."""
    for case in CASES:
        for name, deaths in (("quiet", 0.0), ("deaths", 0.015)):
            for count in (FEW, MANY):
                is_slow = count == MANY or (not deaths and case not in UNDISTURBED)
                marks = [pytest.mark.slow] if is_slow else []
                yield pytest.param(case, deaths, count, marks=marks, id=f"{case}-{name}-{count}")


@pytest.fixture(scope="module")
def oracle(tiny_pair: TinyPair) -> Oracle:
    return Oracle(tiny_pair.verifier)


@pytest.mark.parametrize(("case", "deaths", "count"), list(each_case()))
def test_every_token_is_the_verifiers_own(
    case: str,
    deaths: float,
    count: int,
    tiny_pair: TinyPair,
    oracle: Oracle,
    report_line: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pdv_mp.stages.draft.MAX_FED", 16)
    stages, options = CASES[case]
    seed = 100 * list(CASES).index(case) + int(deaths > 0)
    requests = requests_with_common_beginnings(np.random.default_rng(seed), count)
    options = {"max_num_seqs": 12, "max_num_batched_tokens": 64, "max_model_len": 128, **options}
    split = make_split(
        tiny_pair.verifier,
        tiny_pair.draft,
        stages,
        np.random.default_rng(seed),
        deaths,
        **options,
    )
    if case.startswith("random"):
        use_random_lengths(split, split.controller.max_length, np.random.default_rng(seed))
    results = run(split, requests, np.random.default_rng(seed), arrivals_per_step=1.0)
    plain = make_worker(tiny_pair.verifier, None, max_num_seqs=32, max_model_len=128)
    expected = run(plain, requests, np.random.default_rng(seed), arrivals_per_step=8.0)
    died = split.deaths if deaths else "no lane"
    check_lossless(f"{case}, {died} died", oracle, requests, results, expected, report_line)
    assert split.messages > 30
    assert bool(split.counters.ahead_drafts) == bool(options.get("draft_ahead"))
    assert case != "draft-ahead" or split.counters.ahead_hits > 0
    assert not deaths or min(split.deaths.values()) >= 2
    assert split.num_buffers == 0
    if deaths and "draft" in stages and "kv_handoff" in options:
        assert split.lost_rows > 3, "a draft lane that died has lost its KV"


@pytest.mark.parametrize("way", ["pool", "copy", "handle"])
def test_cancels_reach_prompts_in_a_lane(way: str, tiny_pair: TinyPair, oracle: Oracle) -> None:
    requests = requests_with_common_beginnings(np.random.default_rng(5), 150)
    split = make_split(
        tiny_pair.verifier,
        tiny_pair.draft,
        ("prefill", "draft"),
        np.random.default_rng(6),
        0.005,
        max_num_batched_tokens=8,
        max_model_len=128,
        kv_handoff=way,
    )
    results = run(
        split, requests, np.random.default_rng(7), arrivals_per_step=0.5, cancel_probability=0.05
    )
    assert split.num_buffers == 0
    assert all(result.terminals == 1 for result in results)
    finished = [i for i, result in enumerate(results) if result.finish.name != "ABORT"]
    assert 20 < len(finished) < 145
    verdicts = oracle.judge([requests[i] for i in finished], [results[i] for i in finished])
    assert verdicts.wrong == []
