"""Cycles that run before anything is served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_driver import Request, engine_config, run
from tiny_model import TinyPair

from pdv_mp.config import EngineConfig
from pdv_mp.resources.resources import build_resources
from pdv_mp.workers.rehearsal import Rehearsed, rehearse
from pdv_mp.workers.worker import Worker

Configure = Callable[..., EngineConfig]


@pytest.fixture
def configure(tiny_pair: TinyPair) -> Configure:
    def make(draft: Path | None = tiny_pair.draft, **options: object) -> EngineConfig:
        usual = {"num_speculative_tokens": "auto", "max_num_seqs": 6, "max_speculative_tokens": 4}
        return engine_config(tiny_pair.verifier, draft, **{**usual, **options})

    return make


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_each_size_is_measured_and_nothing_of_it_stays(configure: Configure, layout: str) -> None:
    config = configure(kv_layout=layout)
    resources = build_resources(config)
    rehearsed = rehearse(resources, config)
    times = rehearsed.times
    assert rehearsed.read_ns > 0
    assert {(t.sequences, t.rows // t.sequences) for t in times} == {
        (batch, 1 + length) for batch in (1, 2, 4, 6) for length in (0, 1, 2, 4)
    }
    assert all(t.verify_ns > 0 and (t.draft_ns > 0) == (t.steps > 0) for t in times)
    assert all(t.drafting == (t.sequences if t.steps else 0) for t in times)
    worker = Worker(resources, config, rehearsed=rehearsed)
    assert worker.pools.slots_in_use == worker.pools.blocks_in_use == 0
    requests = [Request(prompt=(5, i + 1), max_tokens=30, seed=i) for i in range(6)]
    texts = [result.ids for result in run(worker, requests, np.random.default_rng(0))]
    assert worker.controller.decisions.trials == 0
    plain = configure(num_speculative_tokens=0, kv_layout=layout)
    alone = Worker(build_resources(plain), plain)
    assert texts == [result.ids for result in run(alone, requests, np.random.default_rng(0))]


def test_lookups_have_their_verification_measured(configure: Configure) -> None:
    config = configure(None, speculative_config='{"method": "ngram"}')
    rehearsed = rehearse(build_resources(config), config)
    times = rehearsed.times
    assert times
    assert rehearsed.read_ns == 0
    assert all(t.verify_ns > 0 and t.steps == t.draft_ns == 0 for t in times)


def test_no_more_sequences_than_there_is_memory_for(configure: Configure) -> None:
    config = configure(kv_cache_memory=1 << 18, max_model_len=64)
    resources = build_resources(config)
    room = resources.num_blocks * resources.plan.block_size
    times = rehearse(resources, config).times
    assert 0 < max(t.sequences for t in times) <= room // 64


@pytest.mark.parametrize(
    "options",
    [
        {"num_speculative_tokens": 3},
        {"draft_controller": "feedback"},
        {"draft": None},
        {"max_model_len": 4},
    ],
)
def test_nothing_runs_where_costs_decide_nothing(
    configure: Configure, options: dict[str, object]
) -> None:
    config = configure(**options)
    assert rehearse(build_resources(config), config) == Rehearsed()
