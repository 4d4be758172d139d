"""When a sweep knows enough: its intervals, looked at on the way."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from bench.report.comparison import compared, comparisons_in, ratio_of
from bench.results.records import CellRecord, Run
from bench.statistics import corrected

Rates = Mapping[tuple[str, str], Mapping[int, float]]
"""Tokens/s of one pair by candidate and load, by block."""


def counts(cell: CellRecord) -> bool:
    """Whether a cell's rate counts: warm-up and what failed does not."""
    return not cell.followed and cell.failed is None and cell.invalid is None


def is_known_well(run: Run, rates: Rates, precision: float, alpha: float) -> bool:
    """Whether every ratio of one pair, those of twins included, is known to a factor of
    1 + ``precision`` either way. ``alpha``: of all comparisons of the run together."""
    each = corrected(alpha, comparisons_in(run))
    sides = [
        *itertools.combinations([candidate.name for candidate in compared(run)], 2),
        *((one.name, one.twin_of) for one in run.candidates if one.twin_of is not None),
    ]
    for load in run.loads:
        for ours, theirs in sides:
            ratio = ratio_of(
                rates.get((ours, load.name), {}), rates.get((theirs, load.name), {}), each
            )
            if ratio is None or ratio.high > ratio.low * (1 + precision) ** 2:
                return False
    return True
