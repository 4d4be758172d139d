"""Recorded steps with padding, the recording being the work itself: the same tokens as without."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine_driver import Request, Result, engine_config, run
from random_lengths import use_random_lengths
from tiny_model import VOCABULARY, TinyPair
from torch.utils._python_dispatch import TorchDispatchMode

from pdv_mp.graphs.capture import Work
from pdv_mp.graphs.graph_steps import GraphSteps
from pdv_mp.graphs.lanes import BUCKETS, bucket_of
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.resources.resources import Resources, build_resources
from pdv_mp.workers.worker import Worker

OPTIONS = {
    "kv_layout": "paged",
    "block_size": 8,
    "max_model_len": 128,
    "max_num_seqs": 12,
    "max_num_batched_tokens": 32,
    "num_speculative_tokens": 3,
    "threads": 1,
    "compile": "never",
}


class NothingWaits(TorchDispatchMode):
    """Refuses what a graph cannot hold: operations whose outcome the host has to wait for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        assert func.overloadpacket.__name__ not in self.WAITING, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


class Recorder:
    """Counts recordings; each of them runs once while it is made, as a graph's warm-up does."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, work: Work) -> Work:
        self.recorded += 1
        with NothingWaits():
            work()

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def resources_of(pair: TinyPair, recorder: Recorder | None, **options: object) -> Resources:
    resources = build_resources(engine_config(pair.verifier, pair.draft, **OPTIONS, **options))
    if recorder is None:
        return resources
    runners = {}
    for role, runner in resources.runners.items():
        assert isinstance(runner.cache, PagedKVCache)
        steps = GraphSteps(runner.transformer, runner.cache, runner.vocab_size, recorder)
        runners[role] = replace(runner, steps=steps)
    return replace(resources, runners=runners)


def serve(
    pair: TinyPair, requests: list[Request], recorder: Recorder | None, **options: object
) -> tuple[list[Result], Worker]:
    config = engine_config(pair.verifier, pair.draft, **OPTIONS, **options)
    worker = Worker(resources_of(pair, recorder, **options), config)
    return run(worker, requests, np.random.default_rng(1), arrivals_per_step=2.0), worker


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some(count: int, seed: int) -> list[Request]:
    """Half greedy, half sampled in many ways; some without drafts."""
    rng = np.random.default_rng(seed)
    return [
        Request(
            prompt=tuple(rng.integers(0, VOCABULARY, int(rng.integers(1, 40))).tolist()),
            max_tokens=int(rng.integers(1, 21)),
            temperature=float(rng.choice([0.0, 0.0, 0.7, 1.2])),
            top_k=int(rng.choice([0, 5, 40])),
            top_p=float(rng.choice([1.0, 0.8])),
            min_p=float(rng.choice([0.0, 0.1])),
            seed=int(rng.integers(0, 2**53)),
            speculate=bool(rng.random() < 0.9),
        )
        for _ in range(count)
    ]


def untruncated(requests: list[Request]) -> list[Request]:
    return [replace(request, top_k=0, top_p=1.0) for request in requests]


@pytest.mark.parametrize("case", ["greedy", "sampled", "mixed", "truncated", "memory"])
def test_the_same_tokens_with_and_without_recordings(case: str, tiny_pair: TinyPair) -> None:
    requests = some(40, 5)
    if case == "greedy":
        requests = [replace(request, temperature=0.0) for request in requests]
    if case in ("sampled", "mixed"):
        requests = untruncated(requests)
    if case == "sampled":
        requests = [replace(request, temperature=0.8, min_p=0.05) for request in requests]
    options = {"kv_cache_memory": 1 << 17} if case == "memory" else {}
    recorder = Recorder()
    recorded, worker = serve(tiny_pair, requests, recorder, **options)
    plain, _ = serve(tiny_pair, requests, None, **options)
    assert [result.ids for result in recorded] == [result.ids for result in plain]
    assert [result.accepted for result in recorded] == [result.accepted for result in plain]
    assert 0 < recorder.recorded < recorder.replayed
    assert worker.counters.accepted_tokens > 0


def test_lengths_that_change_from_cycle_to_cycle(tiny_pair: TinyPair) -> None:
    """Cycles without drafts leave gaps in the draft's cache, which are caught up with."""
    requests = untruncated(some(24, 6))
    results = []
    for recorder in (Recorder(), None):
        config = engine_config(tiny_pair.verifier, tiny_pair.draft, **OPTIONS)
        worker = Worker(resources_of(tiny_pair, recorder), config)
        use_random_lengths(worker, 3, np.random.default_rng(4))
        results.append(run(worker, requests, np.random.default_rng(1), arrivals_per_step=2.0))
    assert [result.ids for result in results[0]] == [result.ids for result in results[1]]


def test_logprobs_come_from_the_rows_that_were_judged(tiny_pair: TinyPair) -> None:
    requests = [
        replace(request, logprobs=index % 4 - 1 if index % 4 else None)
        for index, request in enumerate(untruncated(some(16, 7)))
    ]
    recorded, _ = serve(tiny_pair, requests, Recorder())
    plain, _ = serve(tiny_pair, requests, None)
    for one, other in zip(recorded, plain, strict=True):
        assert one.ids == other.ids
        assert [found.chosen for found in one.logprobs] == pytest.approx(
            [found.chosen for found in other.logprobs], abs=1e-4
        )


def test_classic_rejection_sampling_uses_recorded_forwards_only(tiny_pair: TinyPair) -> None:
    requests = some(12, 8)
    recorder = Recorder()
    recorded, _ = serve(tiny_pair, requests, recorder, acceptance="rejection")
    plain, _ = serve(tiny_pair, requests, None, acceptance="rejection")
    assert [result.ids for result in recorded] == [result.ids for result in plain]
    assert recorder.replayed > 0


def test_nothing_but_the_rows_of_the_batch_is_written(tiny_pair: TinyPair) -> None:
    resources = resources_of(tiny_pair, Recorder())
    runner = resources.target
    cache = runner.cache
    assert isinstance(cache, PagedKVCache)
    for slot in range(5):
        cache.set_blocks(slot, [2 * slot, 2 * slot + 1])
    cache.pool.normal_()
    before = cache.pool.clone()
    assert runner.steps is not None
    batch = ForwardBatch.build(
        np.arange(9),
        np.array([3, 1, 2, 1, 2]),
        np.array([4, 9, 0, 7, 6]),
        np.arange(5),
        None,
        "cpu",
    )
    assert runner.steps.forward(batch) is not None
    changed = (cache.pool != before).flatten(3).any(dim=-1).any(dim=0)
    changed[cache.dummy_block] = False
    expected = torch.zeros_like(changed)
    for slot, position in zip(batch.row_slots.tolist(), batch.row_positions.tolist(), strict=True):
        expected[2 * slot + position // 8, position % 8] = True
    assert torch.equal(changed, expected)


def test_a_step_whose_memory_has_moved_is_refused(tiny_pair: TinyPair) -> None:
    runner = resources_of(tiny_pair, Recorder()).target
    cache = runner.cache
    assert isinstance(cache, PagedKVCache)
    cache.set_blocks(0, [0])
    one = np.ones(1, np.int64)
    batch = ForwardBatch.build(one, one, 0 * one, 0 * one, None, "cpu")
    assert runner.steps is not None
    assert runner.steps.forward(batch) is not None
    cache.pool = cache.pool.clone()
    with pytest.raises(RuntimeError, match="has moved since it was recorded"):
        runner.steps.forward(batch)


def test_batches_take_the_smallest_bucket_that_holds_them() -> None:
    for sequences in range(1, 129):
        lanes = bucket_of(sequences)
        assert lanes == min(bucket for bucket in BUCKETS if bucket >= sequences)
    assert bucket_of(129) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("case", ["greedy", "sampled", "truncated"])
def test_cuda_graphs_change_no_token_but_at_near_ties(case: str, tiny_pair: TinyPair) -> None:
    requests = some(60, 9)
    if case == "greedy":
        requests = [replace(request, temperature=0.0) for request in requests]
    if case == "sampled":
        requests = untruncated(requests)
    found = []
    for graphs in ("auto", "never"):
        options = {**OPTIONS, "device": "cuda:0", "dtype": "float32", "cuda_graphs": graphs}
        del options["threads"]
        config = engine_config(tiny_pair.verifier, tiny_pair.draft, **options)
        resources = build_resources(config)
        recorded = [runner.steps is not None for runner in resources.runners.values()]
        assert recorded == [graphs == "auto"] * 2
        worker = Worker(resources, config)
        found.append(run(worker, requests, np.random.default_rng(1), arrivals_per_step=2.0))
    same = sum(one.ids == other.ids for one, other in zip(*found, strict=True))
    assert same >= 0.95 * len(requests)
