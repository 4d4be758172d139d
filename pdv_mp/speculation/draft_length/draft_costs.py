"""What drafting costs: a line in the number of steps, for each batch size.

t(k) = o + k * s, learnt from the drafts that were made, with old ones forgotten. Until lengths of
more than one kind were seen the line is not known, and it is taken to favour what was not tried: it
goes through the origin below the mean length, and is half as steep above it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pdv_mp.speculation.draft_length.step_costs import BATCHES_PER_OCTAVE, batch_bucket

Floats = npt.NDArray[np.float64]

MAX_WEIGHT = 30.0
KNOWN = 2
MAX_RATIO = 1.5
"""A draft that took longer than this times what was expected counts as that much."""
FEW_KINDS = 0.05
"""Variance of the lengths below which they tell nothing of the slope."""
FED_RATE = 0.2
FIRST_FED_SHARE = 1 / 64
"""Cost of a token that the first step feeds as well, of that of a step, before it was measured."""


@dataclass(slots=True)
class _Line:
    """Weighted means of lengths and times, their variance and covariance."""

    weight: float = 0.0
    steps: float = 0.0
    ns: float = 0.0
    variance: float = 0.0
    covariance: float = 0.0

    @classmethod
    def through(cls, steps: npt.NDArray[np.int64], nanoseconds: Floats) -> _Line:
        """The line that fits these points best, [N] each."""
        off, off_ns = steps - steps.mean(), nanoseconds - nanoseconds.mean()
        return cls(
            weight=float(max(KNOWN, len(steps))),
            steps=float(steps.mean()),
            ns=float(nanoseconds.mean()),
            variance=float((off * off).mean()),
            covariance=float((off * off_ns).mean()),
        )

    def add(self, steps: int, nanoseconds: float) -> None:
        if self.weight >= KNOWN:
            nanoseconds = min(nanoseconds, MAX_RATIO * self.at(steps))
        elif self.weight:
            # The first draft of a size may have prepared what all others use.
            self.ns = min(self.ns, nanoseconds * self.steps / steps)
            nanoseconds = min(nanoseconds, self.ns * steps / self.steps)
        self.weight = min(MAX_WEIGHT, self.weight + 1)
        rate = 1 / self.weight
        off, off_ns = steps - self.steps, nanoseconds - self.ns
        self.steps += rate * off
        self.ns += rate * off_ns
        self.variance = (1 - rate) * (self.variance + rate * off * off)
        self.covariance = (1 - rate) * (self.covariance + rate * off * off_ns)

    def at(self, steps: int) -> float:
        """The time of so many steps."""
        each = self.ns / self.steps
        if self.variance > FEW_KINDS:
            slope = min(max(self.covariance / self.variance, 0.0), each)
        else:
            slope = each / 2 if steps > self.steps else each
        return self.ns + slope * (steps - self.steps)

    def at_all(self, steps: npt.NDArray[np.int64]) -> Floats:
        """The times of each of these numbers of steps, [N]."""
        return np.array([self.at(count) for count in steps.tolist()])


class DraftCosts:
    """Times from an order to its proposal."""

    def __init__(self) -> None:
        self._lines: dict[int, _Line] = {}
        self._fed_ns = 0.0

    def add(self, sequences: int, steps: int, fed: int, nanoseconds: int) -> None:
        """``steps`` drafts for each of ``sequences``, the first of which also fed ``fed`` tokens
        that earlier cycles had left out."""
        key = batch_bucket(sequences)
        line = self._lines.get(key)
        if fed <= sequences:
            if line is None:
                line = self._lines[key] = _Line()
            line.add(steps, nanoseconds)
        elif (near := self._nearest(sequences)) is not None and near.weight >= KNOWN:
            beyond = nanoseconds - near.at(steps)
            beyond = min(max(1.0, beyond / fed), self._step_ns(sequences))
            rate = FED_RATE if self._fed_ns else 1.0
            self._fed_ns += rate * (beyond - self._fed_ns)

    def rehearsed(self, times: Mapping[tuple[int, int], int]) -> None:
        """What drafts took, in ns: by sequences and steps, all pairs of some of either. Batch sizes
        between are interpolated."""
        batches = sorted({batch for batch, _ in times})
        steps = sorted({count for _, count in times})
        logs = np.log([[max(1, times[batch, count]) for count in steps] for batch in batches])
        for bucket in range(batch_bucket(batches[0]), batch_bucket(batches[-1]) + 1):
            log_batch = bucket / BATCHES_PER_OCTAVE * math.log(2)
            at_batch = [np.interp(log_batch, np.log(batches), column) for column in logs.T]
            self._lines.setdefault(bucket, _Line.through(np.array(steps), np.exp(at_batch)))

    @property
    def knows_fed(self) -> bool:
        """Whether the cost of tokens that are fed as well was measured."""
        return self._fed_ns > 0

    def fed_ns(self, sequences: int) -> float:
        """What a token costs that the first step feeds as well."""
        return self._fed_ns or FIRST_FED_SHARE * self._step_ns(sequences)

    def _step_ns(self, sequences: int) -> float:
        line = self._nearest(sequences)
        return 0.0 if line is None else line.ns / line.steps

    def is_known(self, sequences: int) -> bool:
        """Whether drafts of this batch size were measured."""
        line = self._lines.get(batch_bucket(sequences))
        return line is not None and line.weight >= KNOWN

    def estimate(self, sequences: int, steps: npt.NDArray[np.int64]) -> tuple[Floats, bool]:
        """The times in ns of drafting ``steps`` [N] >= 1 tokens, and whether the batch size was
        measured. If not, times of another size that this one can hardly undercut."""
        key = batch_bucket(sequences)
        line = self._lines.get(key)
        if line is not None and line.weight >= KNOWN:
            return line.at_all(steps), True
        line = self._nearest(sequences)
        if line is None:
            return np.zeros(len(steps)), False
        other = min(self._lines, key=lambda found: abs(found - key))
        smaller = min(1.0, 2 ** ((key - other) / BATCHES_PER_OCTAVE))
        return smaller * line.at_all(steps), False

    def _nearest(self, sequences: int) -> _Line | None:
        if not self._lines:
            return None
        key = batch_bucket(sequences)
        return self._lines[min(self._lines, key=lambda found: abs(found - key))]
