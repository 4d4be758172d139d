"""Claims on throughput and latency, held against a sweep's cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from bench.claims.evidence import (
    Evidence,
    measured_latency,
    measured_throughput,
    slope,
)
from bench.claims.records import (
    AverageRatio,
    LatencyRatio,
    Maximum,
    Scaling,
    ScenarioCount,
    ThroughputRatio,
    ValleyClaim,
)
from bench.claims.verdicts import (
    Finding,
    Judgement,
    Measured,
    at,
    figure,
    judge_ratio,
    overlaps,
    ratio_or_reason,
    side_of,
    untestable,
)
from bench.report.analysis import CellSummary, Comparison
from bench.statistics import MIN_BLOCKS

_FEWEST_POINTS = 3
_SEEN = ("ahead", "behind", "no difference shown")


def throughput_ratio(judge: ThroughputRatio, evidence: Evidence) -> list[Finding]:
    """The ratio at each number of clients that was measured."""
    lacking = evidence.lacks(judge.candidate, judge.reference)
    if lacking:
        return [lacking]
    found = [
        at(
            ratio_or_reason(measured_throughput(comparison), judge.ratio),
            comparison.pair,
            load.name,
        )
        for load, comparison in evidence.comparisons(
            judge.pair, judge.concurrency, judge.candidate, judge.reference
        )
    ]
    return _with_missing(found, evidence, judge.concurrency)


def _with_missing(found: list[Finding], evidence: Evidence, wanted: Sequence[int]) -> list[Finding]:
    missing = [level for level in wanted if not evidence.loads(level)]
    if missing or not found:
        return [*found, untestable(evidence.not_measured(missing or wanted))]
    return found


def latency_ratio(judge: LatencyRatio, evidence: Evidence) -> list[Finding]:
    """The ratio of end-to-end latencies at each number of clients that was measured."""
    lacking = evidence.lacks(judge.candidate, judge.reference)
    if lacking:
        return [lacking]
    reference = {(c.pair, c.load): c for c in evidence.cells(judge.pair, judge.reference)}
    found = []
    for cell in evidence.cells(judge.pair, judge.candidate):
        if cell.shape.concurrency in judge.concurrency and (cell.pair, cell.load) in reference:
            measured = measured_latency(cell, reference[cell.pair, cell.load], judge.measure)
            found.append(at(ratio_or_reason(measured, judge.ratio), cell.pair, cell.load))
    return _with_missing(found, evidence, judge.concurrency)


def average_ratio(judge: AverageRatio, evidence: Evidence) -> list[Finding]:
    """The ratio of the means over all numbers of clients, of which none may be missing."""
    lacking = evidence.lacks(judge.candidate, judge.reference)
    if lacking:
        return [lacking]
    missing = [level for level in judge.concurrency if not evidence.loads(level)]
    if missing:
        return [untestable(f"an average over other cells: {evidence.not_measured(missing)}")]
    return [at(_average(judge, evidence, pair), pair) for pair in evidence.pairs(judge.pair)]


def _average(judge: AverageRatio, evidence: Evidence, pair: str) -> Finding:
    sides = []
    for name in (judge.candidate, judge.reference):
        cells = [
            cell
            for cell in evidence.cells(pair, name)
            if cell.shape.concurrency in judge.concurrency and cell.blocks >= MIN_BLOCKS
        ]
        values = [cell.throughput if judge.of == "throughput" else cell.e2e.mean for cell in cells]
        known = [
            (one.value, one.low, one.high)
            for one in values
            if one is not None and one.low is not None and one.high is not None
        ]
        if len(known) < len(judge.concurrency):
            return untestable("some of its cells have too few blocks or failed")
        sides.append([sum(column) for column in zip(*known, strict=True)])
    (value, low, high), (below, lowest, highest) = sides
    if min(low, lowest) <= 0:
        return untestable("some of its cells are too uncertain")
    low, high = low / highest, high / lowest
    return judge_ratio(Measured(value / below, low, high, side_of(low, high)), judge.ratio)


def maximum(judge: Maximum, evidence: Evidence) -> list[Finding]:
    """At how many clients each candidate is fastest, where the intervals tell."""
    lacking = evidence.lacks(*judge.at)
    if lacking:
        return [lacking]
    return [
        at(_fastest(list(evidence.cells(pair, name)), name, level, evidence), pair)
        for pair in evidence.pairs(judge.pair)
        for name, level in judge.at.items()
    ]


def _fastest(cells: Sequence[CellSummary], name: str, claimed: int, evidence: Evidence) -> Finding:
    known = {}
    for cell in cells:
        found = cell.throughput if cell.blocks >= MIN_BLOCKS else None
        if cell.shape.concurrency and found and found.low is not None and found.high is not None:
            known[cell.shape.concurrency] = (found.value, found.low, found.high)
    if claimed not in known or len(known) < _FEWEST_POINTS:
        if evidence.loads(claimed):
            return untestable(f"{name} has too few loads with {MIN_BLOCKS} blocks or more")
        return untestable(evidence.not_measured([claimed]))
    best = max(known, key=lambda level: known[level][0])
    text = f"{name} is fastest at {best} clients ({figure(known[best][0])} tokens/s)"
    if known[best][1] > known[claimed][2]:
        return Finding("not reproduced", text, value=best)
    others = [high for level, (_, _, high) in known.items() if level != claimed]
    if best == claimed and known[claimed][1] > max(others):
        return Finding("reproduced", text, value=best)
    return untestable(f"{text}, and not told apart from {claimed} or its neighbours")


def scaling(judge: Scaling, evidence: Evidence) -> list[Finding]:
    """The slope of the log ratio over the number of clients."""
    lacking = evidence.lacks(judge.candidate, judge.reference)
    if lacking:
        return [lacking]
    found = []
    for pair in evidence.pairs(None):
        points = [
            (load.concurrency or 0, comparison)
            for load, comparison in evidence.comparisons(
                pair, judge.concurrency, judge.candidate, judge.reference
            )
            if comparison.ratio is not None and comparison.verdict in _SEEN
        ]
        found.append(at(_slope(judge, points), pair))
    return found


def _slope(judge: Scaling, points: Sequence[tuple[int, Comparison]]) -> Finding:
    if len(points) < _FEWEST_POINTS:
        levels = ", ".join(str(level) for level in judge.concurrency)
        return untestable(
            f"needs {_FEWEST_POINTS} of C = {levels} with enough blocks; {len(points)} measured"
        )
    value, low, high = slope(points)
    first, last = points[0][0], points[-1][0]
    grown, least, most = (math.exp(one * (last - first)) for one in (value, low, high))
    text = (
        f"from {first} to {last} clients the ratio is multiplied by {figure(grown)} "
        f"({figure(least)} to {figure(most)})"
    )
    judgement: Judgement = (
        "reproduced" if low > 0 and overlaps(low, high, judge.slope) else "not reproduced"
    )
    return Finding(judgement, text, value=value, low=low, high=high)


def valley(judge: ValleyClaim, evidence: Evidence) -> list[Finding]:
    """What the analysis says of a valley."""
    lacking = evidence.lacks(judge.candidate, judge.reference)
    if lacking:
        return [lacking]
    judgements: dict[str, Judgement] = {"valley": "reproduced", "no valley": "not reproduced"}
    return [
        at(
            Finding(judgements.get(one.verdict, "not testable here"), one.text.rstrip(".")),
            one.pair,
        )
        for one in evidence.analysis.valleys
        if (one.candidate, one.reference) == (judge.candidate, judge.reference)
    ] or [untestable("the run has no valley map of these two")]


def scenario_count(judge: ScenarioCount, evidence: Evidence) -> list[Finding]:
    """The share of the cells that were measured."""
    lacking = evidence.lacks(judge.candidate, judge.reference)
    if lacking:
        return [lacking]
    found = []
    for pair in evidence.pairs(None):
        verdicts = [
            comparison.verdict
            for _, comparison in evidence.comparisons(
                pair, judge.concurrency, judge.candidate, judge.reference
            )
            if comparison.verdict in _SEEN
        ]
        if not verdicts:
            found.append(untestable(f"no cell at C = {_span(judge.concurrency)} could be compared"))
            continue
        count = verdicts.count(judge.verdict)
        text = f"{count} of {len(verdicts)} cells {judge.verdict}"
        if count and len(verdicts) < judge.of:
            text += f" ({judge.of} were claimed on)"
        enough = count / len(verdicts) >= judge.count / judge.of
        judgement: Judgement = "reproduced" if enough else "not reproduced"
        found.append(at(Finding(judgement, text, value=count), pair))
    return found


def _span(levels: Iterable[int]) -> str:
    ordered = sorted(levels)
    return f"{ordered[0]} to {ordered[-1]}" if len(ordered) > 1 else str(ordered[0])
