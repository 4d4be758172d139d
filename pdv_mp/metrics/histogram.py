"""A histogram with fixed bounds: an integer per bucket, which only grows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any


def decades(first: int, last: int, steps: Sequence[float]) -> tuple[int, ...]:
    """``steps`` times each power of ten from 10**first to 10**last, and 10**(last + 1)."""
    bounds = [round(step * 10**power) for power in range(first, last + 1) for step in steps]
    return (*bounds, 10 ** (last + 1))


BUCKETS_PER_OCTAVE = 16
"""Of the histograms of handoffs: a percentile is right to 2 ** (1 / 32), about 2 %."""

LATENCY_BOUNDS_NS = decades(5, 11, (1, 1.5, 2, 3, 5, 7))
"""From 100 µs to 1000 s, six a decade."""

TOKEN_BOUNDS = decades(0, 5, (1, 2, 5))
"""From 1 to a million tokens, three a decade."""


class Histogram:
    """Counts of values by bucket: bucket i holds those of at most ``bounds[i]`` and above the bound
    before; the last one those above all bounds. Values and bounds are integers of one unit."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def observe(self, value: int) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def as_dict(self) -> dict[str, Any]:
        """``counts``, and ``sum`` of all values as a float, which may exceed 2**53."""
        return {"counts": list(self.counts), "sum": float(self.total)}


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value below which ``share`` (0 to 1) of the samples are, interpolated within its bucket
    as Prometheus' histogram_quantile does it: the highest bound for what is above it. None without
    samples."""
    total = sum(counts)
    if not total:
        return None
    rank, below = share * total, 0
    for index, count in enumerate(counts[: len(bounds)]):
        if count and below + count >= rank:
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * (rank - below) / count
        below += count
    return float(bounds[-1])


def difference(after: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """What was counted between two :meth:`Histogram.as_dict` of one histogram."""
    if before is None:
        return dict(after)
    counts = [new - old for new, old in zip(after["counts"], before["counts"], strict=True)]
    return {"counts": counts, "sum": after["sum"] - before["sum"]}
