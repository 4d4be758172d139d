"""The cost table of a device that is at hand: steps of a real pair, timed.

A step is planned, computed and sampled from, as a stage does it; what a stage does besides is real
on an emulated device too. What choosing the tokens takes there is taken off. All points of the grid
are timed in rounds, one after the other, so that a slow minute falls on all of them, and each
point's time is its median over the rounds.

Where a model drafts several tokens in one call, a draft step of one row is what each further token
makes such a call longer.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import psutil
import torch

from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.emulation.cost_table import CostTable, ModelSizes, StepCosts
from pdv_mp.emulation.tokens import EmulatedTokens
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.loading import weight_files
from pdv_mp.resources.resource_plan import DRAFT, PlannedModel
from pdv_mp.resources.resources import ModelRunner, Resources
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.speculation.sampling import SamplingRows, SamplingTable, sample
from pdv_mp.workers.device import finish

Progress = Callable[[str], object]

FURTHER_DRAFTS = 4
"""Draft steps by which one call is longer than another, where a model takes several in one."""
PREFILL_SEQUENCES = 4
"""Most prompts of one chunk that are timed."""


@dataclass(frozen=True, slots=True)
class Axes:
    """What a step is timed at."""

    sequences: tuple[int, ...]
    rows: tuple[int, ...]
    context: tuple[int, ...]

    def points(self) -> list[tuple[int, int, int]]:
        """All of them."""
        return list(itertools.product(self.sequences, self.rows, self.context))


def axes_of(resources: Resources, chunk: int) -> dict[str, Axes]:
    """The grid of each step for the batches that a server with these resources may form; ``chunk``:
    most tokens of a chunk of prompts."""
    most, room = resources.num_slots, resources.max_model_len
    sequences = (*(n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < most), most)
    context = tuple(n for n in (16, 128, 512) if n + 64 <= room)
    longest = min(chunk, room // 2)
    widths = (*(n for n in (8, 32, 128) if n < longest), longest)
    prompts = Axes(
        tuple(n for n in sequences if n <= PREFILL_SEQUENCES),
        widths,
        tuple(n for n in (0, 256) if n + widths[-1] <= room),
    )
    grids = {"prefill": prompts, "verify": Axes(sequences, (1, 2, 3, 5, 9), context)}
    if resources.draft is not None:
        grids |= {"prefill_draft": prompts, "draft": Axes(sequences, (1, 2), context)}
    return grids


class Stopwatch:
    """Times steps of the models of one process."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._sampling = SamplingTable(resources.num_slots)
        for slot in range(resources.num_slots):
            self._sampling.set(slot, SamplingParams(), 0)
        self._pools = resources.pools
        self._stand_in = EmulatedTokens(
            0.5, resources.target.vocab_size, resources.target.config.eos_token_ids
        )

    def microseconds(self, step: str, sequences: int, rows: int, context: int) -> float | None:
        """Of one such step; None if the KV budget has no room for it."""
        slots: list[int] = []
        try:
            for _ in range(sequences):
                grant = self._pools.acquire(context + rows + 1 + FURTHER_DRAFTS)
                if grant is None:
                    return None
                slots.append(grant.slot)
            return self._timed(step, np.array(sorted(slots), np.int64), rows, context)
        finally:
            for slot in slots:
                self._pools.release(slot)

    def _timed(self, step: str, slots: np.ndarray, rows: int, context: int) -> float:
        runner = self._runner(step)
        count = len(slots)
        ends = np.arange(1, count + 1) * rows - 1
        logit_rows = {
            "prefill": ends,
            "prefill_draft": np.zeros(0, np.int64),
            "draft": ends if rows > 1 else None,
        }.get(step)
        batch = ForwardBatch.build(
            np.arange(count * rows) % (runner.vocab_size - 1) + 1,
            np.full(count, rows),
            np.full(count, context),
            slots,
            logit_rows,
            runner.device,
        )
        wanted = np.repeat(slots, rows) if logit_rows is None else slots[: len(logit_rows)]
        parameters = self._sampling.rows(wanted, np.full(len(wanted), context + rows))
        if step == "draft" and runner.drafter is not None:
            return self._drafted_at_once(runner, batch, rows, parameters)
        plan = None
        if step == "draft" and rows == 1:
            # All steps of a draft but the first go on from the plan of the step before.
            plan = runner.cache.plan(batch)
            batch = batch.advance(np.full(count, 1))
        finish(runner.device)
        started = time.perf_counter_ns()
        cache = runner.cache
        if step == "verify" and runner.verifier is not None:
            runner.verifier.verify(batch, cache, runner.vocab_size)
        else:
            plan = cache.plan(batch) if plan is None else cache.advance(plan, batch)
            logits = runner.forward(batch, plan)
            if len(wanted):
                sample(logits, parameters).cpu()
        finish(runner.device)
        took = time.perf_counter_ns() - started
        return max(0, took - self._choosing_ns(step, parameters)) / 1000

    def _drafted_at_once(
        self, runner: ModelRunner, batch: ForwardBatch, rows: int, parameters: SamplingRows
    ) -> float:
        """A first step with ``rows`` rows, or the part of one further step in a call."""
        one = np.ones(batch.num_sequences, np.int64)
        first_ns = self._draft_ns(runner, batch, one, parameters)
        if rows > 1:
            return max(0, first_ns - self._choosing_ns("draft", parameters)) / 1000
        all_ns = self._draft_ns(runner, batch, one + FURTHER_DRAFTS, parameters)
        return max(0, all_ns - first_ns) / FURTHER_DRAFTS / 1000

    @staticmethod
    def _draft_ns(
        runner: ModelRunner,
        batch: ForwardBatch,
        lengths: npt.NDArray[np.int64],
        parameters: SamplingRows,
    ) -> int:
        if runner.drafter is None:
            raise ValueError("this model takes one step at a time")
        started = time.perf_counter_ns()
        runner.drafter.draft(batch, runner.cache, lengths, runner.vocab_size, parameters)
        return time.perf_counter_ns() - started

    def _choosing_ns(self, step: str, rows: SamplingRows) -> int:
        """What the emulated tokens of such a step take."""
        started = time.perf_counter_ns()
        if len(rows):
            if step == "draft":
                self._stand_in.propose(torch.empty(0), rows)
            else:
                self._stand_in.sample(torch.empty(0), rows)
        return time.perf_counter_ns() - started

    def _runner(self, step: str) -> ModelRunner:
        resources = self._resources
        if step in ("draft", "prefill_draft"):
            if resources.draft is None:
                raise ConfigError("there is no draft model to calibrate")
            return resources.draft
        return resources.target


def measure_steps(
    stopwatch: Stopwatch, grids: Mapping[str, Axes], rounds: int, progress: Progress
) -> dict[str, StepCosts]:
    """The costs of the steps of the models of a process."""
    times: dict[tuple[str, tuple[int, int, int]], list[float]] = {}
    for turn in range(rounds + 1):
        for name, grid in grids.items():
            for point in grid.points():
                took = stopwatch.microseconds(name, *point)
                if took is None:
                    raise ConfigError(
                        f"the KV budget has no room for {point[0]} sequences of "
                        f"{point[1] + point[2]} tokens: give a larger --kv-cache-memory, or a "
                        "smaller --max-num-seqs"
                    )
                if turn:  # the first round warms up
                    times.setdefault((name, point), []).append(took)
        progress(f"round {turn} of {rounds}")
    return {
        name: StepCosts(
            grid.sequences,
            grid.rows,
            grid.context,
            tuple(
                tuple(
                    tuple(
                        round(float(np.median(times[name, (count, rows, tokens)])), 2)
                        for tokens in grid.context
                    )
                    for rows in grid.rows
                )
                for count in grid.sequences
            ),
        )
        for name, grid in grids.items()
    }


def calibrated_table(
    resources: Resources,
    config: EngineConfig,
    name: str,
    acceptance: float,
    steps: dict[str, StepCosts],
    overlap: bool,
    contention: float | None,
) -> CostTable:
    """The table of a pair as it was measured; ``overlap`` as in a cost table. ``contention``: of
    steps that compute on one core of this host, whose processes overlap."""
    device = resources.plan.device
    threads = torch.get_num_threads()
    memory = psutil.virtual_memory().total
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    models = {
        "draft" if model.role == DRAFT else "target": _sizes(resources, model)
        for model in resources.plan.models
        if model.role in resources.runners
    }
    return CostTable(
        name=name,
        origin=(
            f"measured: {device} with {threads} threads, {config.model.dtype} as --dtype, by "
            "pdv-bench calibrate; steps are timed to their end, so launch and synchronisation are "
            "in them"
        ),
        acceptance=acceptance,
        memory_bytes=int(memory),
        launch_us=0.0,
        synchronize_us=0.0,
        time_slice_us=0.0,
        overlap=overlap or contention is not None,
        models=models,
        steps=steps,
        host_core=contention is not None,
        contention=1.0 if contention is None else round(contention, 3),
    )


def _sizes(resources: Resources, model: PlannedModel) -> ModelSizes:
    shape = model.config
    return ModelSizes(
        name=model.name,
        dtype=str(resources.plan.dtype).removeprefix("torch."),
        layers=shape.num_layers,
        heads=shape.num_heads,
        kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        context=min(shape.context_limit, resources.max_model_len),
        weight_bytes=sum(path.stat().st_size for path in weight_files(model.folder)),
    )


def acceptance_of(mean_accepted: float, k: int) -> float:
    """The probability a of each draft for which a cycle of k drafts keeps so many on average:
    a (1 - a^k) / (1 - a), solved by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        kept = sum(middle**place for place in range(1, k + 1))
        low, high = (middle, high) if kept < mean_accepted else (low, middle)
    return (low + high) / 2
