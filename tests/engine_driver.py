"""Drives a Worker by hand: random arrivals, random departures, everything it emits collected."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pdv_mp.config import EngineConfig
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.resources.resources import ModelRunner, Resources, build_resources
from pdv_mp.scheduling.sequences import Sequence
from pdv_mp.timeline import Timeline, state_index
from pdv_mp.wire.engine import Finish, LogprobColumns, Open, PromptLogprobs, Stamps
from pdv_mp.workers.worker import Send, Worker

_ENCODE = state_index("front>verify.encode")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Request:
    """What is asked of the engine."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    speculate: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True)
class Logprob:
    """A token's log-probability, and ids and log-probabilities of the alternatives."""

    chosen: float
    top: list[tuple[int, float]]


@dataclass
class Result:
    """What came back."""

    ids: list[int] = field(default_factory=list)
    finish: Finish = Finish.NONE
    stop_id: int = -1
    drafted: int = 0
    accepted: int = 0
    terminals: int = 0
    timeline: list[object] | None = None
    logprobs: list[Logprob] = field(default_factory=list)
    prompt_logprobs: list[Logprob] = field(default_factory=list)


class KVWatcher:
    """Follows what a model's forwards and drafts really write, apart from the engine's own columns.

    Either must go on exactly where a slot's valid rows end: neither leaving a gap nor computing
    a row again. After a cycle the engine's length must be what was written, cut to the committed
    tokens but the last.
    """

    def __init__(self, worker: Worker, runner: ModelRunner, lengths: np.ndarray) -> None:
        self._worker = worker
        self._lengths = lengths
        self._written = np.zeros(worker.table.num_slots, np.int64)
        runner.transformer.forward = self._watched(  # type: ignore[method-assign]
            runner.transformer.forward
        )
        if runner.verifier is not None:
            runner.verifier.verify = self._watched(  # type: ignore[method-assign]
                runner.verifier.verify
            )
        drafter = runner.drafter
        if drafter is None:
            return
        draft = drafter.draft

        def watched_draft(
            batch: ForwardBatch, cache: KVCache, lengths: np.ndarray, *arguments: Any
        ) -> np.ndarray:
            slots, starts = batch.slots, batch.start_positions
            assert np.array_equal(starts, self._written[slots]), "a gap, or rows computed twice"
            self._written[slots] = starts + batch.query_lens + lengths - 1
            return draft(batch, cache, lengths, *arguments)

        drafter.draft = watched_draft  # type: ignore[method-assign]

    def _watched(self, forward: Callable[..., Found]) -> Callable[..., Found]:
        def watched(batch: ForwardBatch, *arguments: object, **keywords: object) -> Found:
            slots, starts = batch.slots, batch.start_positions
            assert np.array_equal(starts, self._written[slots]), "a gap, or rows computed twice"
            self._written[slots] = starts + batch.query_lens
            return forward(batch, *arguments, **keywords)

        return watched

    def admitted(self, slot: int) -> None:
        """A slot has a new owner; what came from the prefix cache counts as written."""
        self._written[slot] = self._lengths[slot]

    def lost(self, slots: np.ndarray) -> None:
        """What a lane wrote for these slots is unknown to the engine, which writes it again."""
        self._written[slots] = self._lengths[slots]

    def check(self) -> None:
        """Compare with the engine's columns, where no cycle is under way."""
        table = self._worker.table
        sequences = self._worker.scheduler.running_sequences()
        running = np.array([sequence.slot for sequence in sequences], np.int64)
        running = running[~table.in_flight[running]]
        expected = np.minimum(self._written[running], table.committed[running] - 1)
        assert np.array_equal(self._lengths[running], expected), (
            "KV lengths are not what was written"
        )
        self._written[running] = expected


class WatchedWorker(Worker):
    """A Worker whose KV lengths are checked after every cycle."""

    def __init__(
        self, resources: Resources, config: EngineConfig, lanes: Mapping[str, Send] | None = None
    ) -> None:
        super().__init__(resources, config, lanes=lanes)
        self._watchers = [KVWatcher(self, resources.target, self.table.target_len)]
        # A lane that drafts ahead writes guesses beside what the engine knows of.
        if resources.draft is not None and not config.handoff.draft_ahead:
            self._watchers.append(KVWatcher(self, resources.draft, self.table.draft_len))
        check = self.scheduler.check

        def check_all() -> None:
            check()
            self._check_rows()

        self.scheduler.check = check_all  # type: ignore[method-assign]
        fill = self.table.fill

        def watched(sequence: Sequence, num_cached: int, room: int) -> None:
            fill(sequence, num_cached, room)
            for watcher in self._watchers:
                watcher.admitted(sequence.slot)

        self.table.fill = watched  # type: ignore[method-assign]

    def _check_rows(self) -> None:
        for watcher in self._watchers:
            watcher.check()

    def step(self) -> bool:
        progressed = super().step()
        self._check_rows()
        return progressed


def engine_config(folder: Path, draft: Path | None, **options: object) -> EngineConfig:
    """An engine on models in local folders, with invariants checked after every cycle. It drafts
    as far as ever, whatever that costs here, unless the options say otherwise."""
    usual = {"device": "cpu", "check_invariants": True, "kv_cache_memory": 1 << 21}
    settings = {**usual, "num_speculative_tokens": 4, **options}
    return EngineConfig.from_options(
        model=str(folder), draft_model=str(draft) if draft else "none", **settings
    )


def make_worker(folder: Path, draft: Path | None, **options: object) -> Worker:
    """A Worker with all stages in it."""
    config = engine_config(folder, draft, **options)
    return WatchedWorker(build_resources(config), config)


def open_message(key: int, request: Request, report_timeline: bool = False) -> Open:
    now = time.monotonic_ns()
    return Open(
        request=key,
        prompt_ids=np.array(request.prompt, np.int32),
        max_tokens=request.max_tokens,
        sampling=(
            request.temperature,
            request.top_k,
            request.top_p,
            request.min_p,
            request.seed,
        ),
        stop_ids=request.stop_ids,
        speculate=request.speculate,
        logprobs=-1 if request.logprobs is None else request.logprobs,
        prompt_logprobs=-1 if request.prompt_logprobs is None else request.prompt_logprobs,
        report_timeline=report_timeline,
        timeline=Timeline(_ENCODE, now).pack(),
        stamps=Stamps(now, now, now, now),
    )


def _logprobs(columns: LogprobColumns) -> list[Logprob | None]:
    """The rows of a message, None where a request wants none."""
    found: list[Logprob | None] = []
    start = 0
    for chosen, width in zip(columns.chosen.tolist(), columns.widths.tolist(), strict=True):
        end = start + max(width, 0)
        top = zip(columns.top_ids[start:end].tolist(), columns.top[start:end].tolist(), strict=True)
        found.append(None if width < 0 else Logprob(chosen, list(top)))
        start = end
    assert start == len(columns.top)
    return found


def collect(worker: Worker, results: dict[int, Result]) -> int:
    """Apply what the worker has emitted; how many requests ended."""
    ended = 0
    for message in worker.emissions(time.monotonic_ns()):
        if isinstance(message, PromptLogprobs):
            result = results[message.request]
            assert message.start == 1 + len(result.prompt_logprobs), "parts come in order"
            assert not result.ids, "parts come before the first token"
            result.prompt_logprobs += [found for found in _logprobs(message.logprobs) if found]
            continue
        logprobs = None if message.logprobs is None else _logprobs(message.logprobs)
        assert logprobs is None or len(logprobs) == len(message.ids)
        offset = 0
        for entry, key in enumerate(message.requests.tolist()):
            result = results[key]
            count = int(message.counts[entry])
            result.ids += message.ids[offset : offset + count].tolist()
            if logprobs is not None:
                result.logprobs += filter(None, logprobs[offset : offset + count])
            offset += count
            result.drafted += int(message.drafted[entry])
            result.accepted += int(message.accepted[entry])
            finish = Finish(int(message.finish[entry]))
            if finish is not Finish.NONE:
                result.finish = finish
                result.stop_id = int(message.stop_ids[entry])
                result.terminals += 1
                ended += 1
        assert offset == len(message.ids)
        for entry, timeline in message.timelines:
            results[int(message.requests[entry])].timeline = timeline
    return ended


def run(
    worker: Worker,
    requests: list[Request],
    rng: np.random.Generator,
    arrivals_per_step: float = 2.0,
    cancel_probability: float = 0.0,
    report_timeline: bool = False,
) -> list[Result]:
    """Serve all requests, arriving at random between batches, some cancelled on the way."""
    results = {key: Result() for key in range(len(requests))}
    pending = list(range(len(requests)))[::-1]
    running: set[int] = set()
    ended = 0
    while ended < len(requests):
        for _ in range(int(rng.poisson(arrivals_per_step))):
            if pending:
                key = pending.pop()
                worker.scheduler.submit(open_message(key, requests[key], report_timeline))
                running.add(key)
        if running and rng.random() < cancel_probability:
            worker.close([int(rng.choice(sorted(running)))])
        progressed = worker.step()
        ended += collect(worker, results)
        running = {key for key in running if results[key].terminals == 0}
        assert progressed or pending or not running, "the engine stopped with requests open"
    while worker.step():
        pass
    worker.scheduler.check()
    assert worker.pools.blocks_in_use == 0, "leaked KV blocks"
    assert worker.pools.slots_in_use == 0, "leaked slots"
    assert all(result.terminals == 1 for result in results.values())
    return [results[key] for key in range(len(requests))]
