"""Where a forward pass of our compiled kernels spends its time, beside what the device can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from time import perf_counter
from typing import Protocol

import numpy as np
import torch

from bench.roofline.bounds import step_seconds
from bench.roofline.models import ModelCost
from bench.roofline.rates import Rates
from bench.statistics import ALPHA, Estimate, geometric_mean
from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.memory.huge_pages import huge_buffer
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.loading import random_weights
from pdv_mp.model.native.library import PHASES, native_library
from pdv_mp.model.native.native_transformer import NativeTransformer
from pdv_mp.model.native.panels import fill_panels, panel_manifest
from pdv_mp.model.weights import Weights

REPETITIONS = 3
GLANCE_SECONDS = 0.03
"""Of each rate around a step."""

PRODUCTS = ("qkv", "out", "gate_up", "down", "head")


@dataclass(frozen=True, slots=True)
class Step:
    """A forward pass: ``batch`` sequences of ``rows`` new tokens behind ``context`` cached ones.

    A prompt (``context`` 0) wants the logits of its last row alone.
    """

    batch: int
    rows: int
    context: int

    def __str__(self) -> str:
        what = f"{self.rows} rows" if self.rows > 1 else "1 row"
        behind = f" behind {self.context} tokens" if self.context else ", a prompt"
        return f"{self.batch} × {what}{behind}"


def steps(concurrency: Sequence[int], prompt: int, draft: int) -> Iterator[Step]:
    """A prompt, and plain and verify steps at each concurrency."""
    yield Step(1, prompt, 0)
    for batch in concurrency:
        yield Step(batch, 1, prompt)
        yield Step(batch, draft + 1, prompt)


@dataclass(frozen=True, slots=True)
class Timing:
    """``seconds`` of a step, the median of repetitions; ``shares`` of it by phase, which lack what
    happens outside of the kernels."""

    seconds: float
    shares: dict[str, float]

    @property
    def products(self) -> float:
        """The share of matrix products."""
        return sum(self.shares[name] for name in PRODUCTS)


@dataclass(frozen=True, slots=True)
class Look:
    """A step that was timed while the machine reached ``rates``, its bandwidth the mean of right
    before and right after. ``bound`` in seconds."""

    timing: Timing
    rates: Rates
    bound: float


@dataclass(frozen=True, slots=True)
class Profile:
    """A step, and what was seen of it in each of one or more rounds."""

    step: Step
    looks: tuple[Look, ...]

    @property
    def seconds(self) -> float:
        """The median round's."""
        return median(look.timing.seconds for look in self.looks)

    @property
    def bound(self) -> float:
        """Seconds, the median round's."""
        return median(look.bound for look in self.looks)

    @property
    def products(self) -> float:
        """The mean share of matrix products."""
        return fmean(look.timing.products for look in self.looks)

    @property
    def attention(self) -> float:
        """The mean share of attention."""
        return fmean(look.timing.shares["attend"] for look in self.looks)

    @property
    def reached(self) -> Estimate | None:
        """Of its bound, the geometric mean of rounds."""
        return geometric_mean([look.bound / look.timing.seconds for look in self.looks], ALPHA)


class Profiler:
    """A model of a shape with random weights. Raises NativeError where there are no kernels."""

    def __init__(self, config: ModelConfig, most: int, context: int) -> None:
        """Steps have at most ``most`` sequences of at most ``context`` tokens."""
        library = native_library()
        manifest = panel_manifest(config, library.lanes)
        panels = Weights(manifest, huge_buffer(manifest.nbytes))
        weights = random_weights(config, torch.float32, "cpu", seed=0)
        fill_panels(config, weights, panels, library.lanes)
        self._config = config
        self._model = NativeTransformer(config, panels, context, library)
        self._cache = ContiguousKVCache(config, most, context, torch.float32, 16)

    @property
    def config(self) -> ModelConfig:
        """The shape."""
        return self._config

    def time(self, step: Step, repetitions: int = REPETITIONS) -> Timing:
        """After one that does not count."""
        rows = step.batch * step.rows
        batch = ForwardBatch.build(
            np.arange(rows) % self._config.vocab_size,
            np.full(step.batch, step.rows),
            np.full(step.batch, step.context),
            np.arange(step.batch),
            None if step.context else np.array([rows - 1]),
            "cpu",
        )
        times, phases = [], np.zeros(len(PHASES))
        for counts in [False] + [True] * repetitions:
            self._model.seconds = phases if counts else None
            begin = perf_counter()
            self._model.forward(batch, self._cache)
            if counts:
                times.append(perf_counter() - begin)
        self._model.seconds = None
        shares = dict(zip(PHASES, (phases / sum(times)).tolist(), strict=True))
        return Timing(median(times), shares)


def bound(config: ModelConfig, rates: Rates, step: Step) -> float:
    """The least seconds of a step."""
    context = step.context if step.context else step.rows / 2
    logits = None if step.context else 1
    return step_seconds(rates, ModelCost.of(config), step.batch, step.rows, context, logits)


class Speeds(Protocol):
    """What measures the machine now."""

    def bandwidth(self, seconds: float) -> float:
        """Bytes/s, measured for so many seconds."""

    def flops(self, seconds: float) -> float:
        """Operations/s of matrix products."""


def profile(
    profiler: Profiler, planned: Sequence[Step], machine: Speeds, rounds: int
) -> list[Profile]:
    """All steps in every round. Memory is measured right before and right after each, and products
    before it, since on a shared machine the rates change within seconds."""
    looks: list[list[Look]] = [[] for _ in planned]
    for _ in range(rounds):
        for step, seen in zip(planned, looks, strict=True):
            flops = machine.flops(GLANCE_SECONDS)
            before = machine.bandwidth(GLANCE_SECONDS)
            timing = profiler.time(step)
            after = machine.bandwidth(GLANCE_SECONDS)
            rates = Rates("now", (before + after) / 2, flops)
            seen.append(Look(timing, rates, bound(profiler.config, rates, step)))
    return [Profile(step, tuple(seen)) for step, seen in zip(planned, looks, strict=True)]


def table(profiles: Sequence[Profile]) -> str:
    """As Markdown: medians of rounds, shares as means, and what was reached of the bound with its
    interval."""
    heads = (
        *("step", "ms", "bound, ms", "bound ÷ measured", "GB/s", "GFLOP/s"),
        *("products", "attention", "the rest"),
    )
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for profile in profiles:
        rates = [look.rates for look in profile.looks]
        cells = (
            str(profile.step),
            f"{1000 * profile.seconds:.1f}",
            f"{1000 * profile.bound:.1f}",
            str(profile.reached),
            _span([rate.bandwidth / 1e9 for rate in rates]),
            _span([rate.flops / 1e9 for rate in rates]),
            f"{profile.products:.0%}",
            f"{profile.attention:.0%}",
            f"{1 - profile.products - profile.attention:.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _span(values: Sequence[float]) -> str:
    """The median, the least and the most."""
    return f"{median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
