"""What a run has to hold claims against, looked up by the names that claims use."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.claims.records import Claims
from bench.claims.verdicts import Finding, Measured, Side, side_of, untestable
from bench.legacy.results import RAW, Legacy, derive, has_raw
from bench.report.analysis import Analysis, CellSummary, Comparison
from bench.results.records import Candidate, Load
from bench.results.store import ResultsFolder
from bench.statistics import MIN_BLOCKS, Quantile


@dataclass(frozen=True, slots=True)
class Evidence:
    """The analysis of a sweep, and what else its folder holds."""

    claims: Claims
    analysis: Analysis
    folder: Path
    legacy: Legacy | None

    @classmethod
    def of(cls, claims: Claims, analysis: Analysis, folder: Path) -> Evidence:
        """The legacy window is derived from its raw records. Raises ResultsError if they cannot be
        read."""
        legacy = derive(ResultsFolder(folder / RAW)) if has_raw(folder) else None
        return cls(claims, analysis, folder, legacy)

    def pairs(self, name: str | None) -> list[str]:
        """The run's pairs to judge a claim on: the one that it names, if that was measured; if it
        names none, the documents' pairs among them; without such, all."""
        found = [pair.name for pair in self.analysis.run.pairs]
        known = list(self.claims.pairs) if name is None else [name]
        return [pair for pair in found if pair in known] or found

    def is_other(self, pair: str | None, claimed: str | None) -> bool:
        """Whether what was measured on ``pair`` is not on the one that is claimed on, or, if none
        is named, on none of the documents'."""
        if pair is None:
            return False
        return pair not in self.claims.pairs if claimed is None else pair != claimed

    def loads(self, concurrency: int) -> list[Load]:
        """Closed loops of so many clients."""
        loads = self.analysis.run.loads
        return [one for one in loads if one.kind == "closed" and one.concurrency == concurrency]

    def measured_levels(self) -> list[int]:
        """Numbers of clients that there are loads of."""
        loads = self.analysis.run.loads
        return sorted(
            {one.concurrency for one in loads if one.kind == "closed" and one.concurrency}
        )

    def lacks(self, *candidates: str) -> Finding | None:
        """Why candidates cannot be compared at all, if one was not to be measured."""
        known = {candidate.name for candidate in self.analysis.run.candidates}
        missing = [name for name in candidates if name not in known]
        return untestable(f"{' and '.join(missing)} not measured") if missing else None

    def comparisons(
        self, pair: str | None, levels: Sequence[int], candidate: str, reference: str
    ) -> Iterator[tuple[Load, Comparison]]:
        """Those at these numbers of clients, by pair."""
        for name in self.pairs(pair):
            for level in levels:
                for load in self.loads(level):
                    try:
                        found = self.analysis.comparison(name, load.name, candidate, reference)
                    except KeyError:
                        continue
                    yield load, found

    def cells(self, pair: str | None, candidate: str) -> Iterator[CellSummary]:
        """The candidate's cells under closed loops."""
        names = self.pairs(pair)
        for cell in self.analysis.cells:
            if cell.candidate == candidate and cell.pair in names and cell.shape.kind == "closed":
                yield cell

    def not_measured(self, levels: Sequence[int]) -> str:
        """Why there is nothing at these numbers of clients."""
        wanted = ", ".join(str(level) for level in levels)
        there = ", ".join(str(level) for level in self.measured_levels()) or "none"
        return f"C = {wanted} was not measured (closed loops of {there} clients were)"

    def only_differing(self, option: str) -> Iterator[tuple[Candidate, Candidate]]:
        """Candidates of one topology with equal options but for this one, twins left out."""
        candidates = [one for one in self.analysis.run.candidates if one.twin_of is None]
        for one in candidates:
            for other in candidates:
                if one.topology != other.topology or one.name == other.name:
                    continue
                left, right = self.options(one), self.options(other)
                if left.pop(option, None) != right.pop(option, None) and left == right:
                    yield one, other

    def options(self, candidate: Candidate) -> dict[str, Any]:
        """All options of a candidate's server by name, defaults included where the run has them."""
        found: dict[str, Any] = {}
        for configuration in self.analysis.run.configurations:
            if configuration.candidate == candidate.name:
                for group, values in configuration.options.items():
                    found.update(values if isinstance(values, dict) else {group: values})
                break
        return {**found, **candidate.options}


def measured_throughput(found: Comparison) -> Measured | Finding:
    """The ratio of a comparison, or why there is none."""
    if found.verdict == "failed":
        return untestable("its cells failed")
    if found.ratio is None or found.verdict == "too few blocks":
        return untestable(f"{found.blocks} blocks are too few")
    sides: dict[str, Side] = {"ahead": "above", "behind": "below"}
    shown = sides.get(found.verdict, "neither")
    ratio = found.ratio
    return Measured(ratio.estimate, ratio.low, ratio.high, shown, found.smallest_effect)


def measured_latency(
    candidate: CellSummary, reference: CellSummary, measure: str
) -> Measured | Finding:
    """The ratio of two latencies; its interval goes from the low end of one over the high end of
    the other to the reverse, which is wide, as it does not use that blocks are paired."""
    blocks = min(candidate.blocks, reference.blocks)
    if blocks < MIN_BLOCKS:
        return untestable(f"{blocks} blocks are too few")
    above, below = (_latency(cell, measure) for cell in (candidate, reference))
    if above is None or below is None or min(*above, *below) <= 0:
        return untestable("too few requests ended, or blocks were measured, to tell the latency")
    low, high = above[1] / below[2], above[2] / below[1]
    return Measured(above[0] / below[0], low, high, side_of(low, high))


def _latency(cell: CellSummary, measure: str) -> tuple[float, float, float] | None:
    if measure == "mean":
        mean = cell.e2e.mean
        if mean is None or mean.low is None or mean.high is None:
            return None
        return mean.value, mean.low, mean.high
    found: Quantile | None = cell.e2e.p95 if measure == "p95" else cell.e2e.p99
    return None if found is None else (found.value, found.low, found.high)


def slope(points: Sequence[tuple[int, Comparison]]) -> tuple[float, float, float]:
    """Of the log ratio over the number of clients, by least squares, with an interval from those of
    the ratios, taken as independent."""
    middle = sum(level for level, _ in points) / len(points)
    square = sum((level - middle) ** 2 for level, _ in points)
    value = reach = 0.0
    for level, found in points:
        if found.ratio is None:
            raise ValueError("a comparison without a ratio has no slope")
        weight = (level - middle) / square
        value += weight * math.log(found.ratio.estimate)
        reach += (weight * found.ratio.half_width) ** 2
    return value, value - math.sqrt(reach), value + math.sqrt(reach)
