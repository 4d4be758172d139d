"""Where a forward pass of our compiled kernels spends its time, beside what the device can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
import torch

from bench.roofline.bounds import step_seconds
from bench.roofline.models import ModelCost
from bench.roofline.rates import Rates
from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.memory.huge_pages import huge_buffer
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.loading import random_weights
from pdv_mp.model.native.library import PHASES, native_library
from pdv_mp.model.native.native_transformer import NativeTransformer
from pdv_mp.model.native.panels import fill_panels, panel_manifest
from pdv_mp.model.weights import Weights

ROUNDS = 7

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
class Profile:
    """``seconds`` of a step, the median of rounds; ``shares`` of it by phase, which lack what
    happens outside of the kernels; ``bound`` in seconds."""

    step: Step
    seconds: float
    shares: dict[str, float]
    bound: float

    @property
    def products(self) -> float:
        """The share of matrix products."""
        return sum(self.shares[name] for name in PRODUCTS)


class Profiler:
    """A model of a shape with random weights. Raises NativeError where there are no kernels."""

    def __init__(self, config: ModelConfig, rates: Rates, most: int, context: int) -> None:
        """Steps have at most ``most`` sequences of at most ``context`` tokens."""
        library = native_library()
        manifest = panel_manifest(config, library.lanes)
        panels = Weights(manifest, huge_buffer(manifest.nbytes))
        weights = random_weights(config, torch.float32, "cpu", seed=0)
        fill_panels(config, weights, panels, library.lanes)
        self._config = config
        self._rates = rates
        self._model = NativeTransformer(config, panels, context, library)
        self._cache = ContiguousKVCache(config, most, context, torch.float32, 16)

    def __call__(self, step: Step) -> Profile:
        """Time a step."""
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
        for counts in [False] + [True] * ROUNDS:
            self._model.seconds = phases if counts else None
            begin = perf_counter()
            self._model.forward(batch, self._cache)
            if counts:
                times.append(perf_counter() - begin)
        self._model.seconds = None
        cost = ModelCost.of(self._config)
        context = step.context if step.context else step.rows / 2
        return Profile(
            step,
            median(times),
            dict(zip(PHASES, (phases / sum(times)).tolist(), strict=True)),
            step_seconds(
                self._rates, cost, step.batch, step.rows, context, None if step.context else 1
            ),
        )


def table(profiles: Sequence[Profile]) -> str:
    """As Markdown."""
    heads = ("step", "ms", "bound, ms", "bound ÷ measured", "products", "attention", "the rest")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for profile in profiles:
        attention = profile.shares["attend"]
        cells = (
            str(profile.step),
            f"{1000 * profile.seconds:.1f}",
            f"{1000 * profile.bound:.1f}",
            f"{profile.bound / profile.seconds:.2f}",
            f"{profile.products:.0%}",
            f"{attention:.0%}",
            f"{1 - profile.products - attention:.0%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
