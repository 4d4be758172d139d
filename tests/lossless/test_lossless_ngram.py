"""N-gram drafts in the engine: nobody's text changes, and repetitive text is mostly drafted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from common_beginnings import requests_with_common_beginnings
from engine_driver import Request, make_worker, run
from oracle import Oracle, check_lossless
from random_lengths import use_random_lengths
from split_engine import make_split
from tiny_model import VOCABULARY, TinyPair
from tokenizers import Tokenizer

from pdv_mp import assets
from pdv_mp.workers.worker import Worker

FEW, MANY = 120, 600
NGRAM = '{"method": "ngram"}'

# stages that lanes host, options
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "k4": ((), {"num_speculative_tokens": 4}),
    "auto": ((), {"num_speculative_tokens": "auto"}),
    "random lengths, paged, tight memory": (
        (),
        {
            "num_speculative_tokens": 6,
            "kv_layout": "paged",
            "kv_cache_memory": 1 << 18,
            "block_size": 4,
        },
    ),
    "k8, pre-empted": (
        (),
        {"num_speculative_tokens": 8, "kv_cache_memory": 1 << 17, "block_size": 1},
    ),
    "two groups, one place": ((), {"num_speculative_tokens": 4, "groups": 2, "max_num_seqs": 1}),
    "random lengths, pd, two groups": (("prefill",), {"num_speculative_tokens": 5, "groups": 2}),
    "pd, copy": (("prefill",), {"num_speculative_tokens": 3, "kv_handoff": "copy"}),
}


@pytest.fixture(scope="module")
def oracle(tiny_pair: TinyPair) -> Oracle:
    return Oracle(tiny_pair.verifier)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_every_token_is_the_verifiers_own(
    case: str, count: int, tiny_pair: TinyPair, oracle: Oracle, report_line: Callable[[str], None]
) -> None:
    stages, options = CASES[case]
    seed = 300 + list(CASES).index(case)
    requests = requests_with_common_beginnings(np.random.default_rng(seed), count)
    options = {"max_num_seqs": 12, "max_model_len": 128, "speculative_config": NGRAM, **options}
    worker: Worker
    if stages:
        rng = np.random.default_rng(seed)
        worker = make_split(tiny_pair.verifier, None, stages, rng, 0.01, **options)
    else:
        worker = make_worker(tiny_pair.verifier, None, **options)
    if case.startswith("random"):
        use_random_lengths(worker, worker.controller.max_length, np.random.default_rng(seed))
    results = run(worker, requests, np.random.default_rng(seed), arrivals_per_step=2.0)
    alone = [replace(request, speculate=False) for request in requests]
    plain = make_worker(tiny_pair.verifier, None, max_num_seqs=32, max_model_len=128)
    expected = run(plain, alone, np.random.default_rng(seed), arrivals_per_step=8.0)
    # The tiny model's text is nearly random, so little of it was there before.
    check_lossless(f"ngram, {case}", oracle, requests, results, expected, report_line, 0.0)
    assert worker.counters.drafted_tokens > 0
    assert worker.counters.accepted_tokens > 0
    assert case != "k8, pre-empted" or worker.counters.preemptions > 20
    assert worker.counters.draft_forwards == worker.counters.draft_prefill_forwards == 0
    assert worker.info()["speculation"]["method"] == "ngram"


def test_repetitive_text_is_mostly_drafted() -> None:
    """The same lines with other names, over and over, as code has them."""
    tokenizer = Tokenizer.from_file(str(assets.verifier_path() / "tokenizer.json"))
    lines = "    self.first = first\n    self.second = second\n    self.third = third\n"
    ids = tuple(tokenizer.encode("def __init__(self, first, second, third):\n" + 8 * lines).ids)
    requests = [Request(ids[: len(ids) - cut], max_tokens=80) for cut in range(4)]
    options = {"max_model_len": 512, "kv_cache_memory": 1 << 28}
    plain = make_worker(assets.verifier_path(), None, **options)
    expected = [result.ids for result in run(plain, requests, np.random.default_rng(3))]
    for length in (8, "auto"):
        worker = make_worker(
            assets.verifier_path(),
            None,
            num_speculative_tokens=length,
            speculative_config=NGRAM,
            **options,
        )
        results = run(worker, requests, np.random.default_rng(2))
        assert [result.ids for result in results] == expected
        counters = worker.counters
        assert counters.accepted_tokens > 0.5 * counters.drafted_tokens > 0
        assert length == "auto" or counters.accepted_tokens > 4 * counters.verify_cycles


def test_a_text_that_never_repeats_has_no_drafts(tiny_pair: TinyPair) -> None:
    rng = np.random.default_rng(4)
    prompt = tuple(rng.permutation(VOCABULARY)[:100].tolist())
    config = '{"method": "ngram", "prompt_lookup_min": 4}'
    worker = make_worker(
        tiny_pair.verifier,
        None,
        max_model_len=128,
        num_speculative_tokens=4,
        speculative_config=config,
    )
    run(worker, [Request(prompt, 10, temperature=2.0, seed=1)], np.random.default_rng(5))
    assert worker.counters.drafted_tokens == 0
