"""From the raw records of a sweep to all that a report says: :func:`analyse`.

The types are those of bench/report/summaries.py, and can be had from here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.report.bounds import Bounds
from bench.report.cells import CellBlocks, summarise
from bench.report.comparison import Cells, comparisons, comparisons_in, noises
from bench.report.metrics import CellMetrics, measure
from bench.report.recommendation import recommendations
from bench.report.summaries import (
    Analysis,
    Cause,
    CellSummary,
    Choice,
    Comparison,
    Contrast,
    Estimate,
    GpuSummary,
    Latency,
    Noise,
    Problem,
    ProcessUse,
    Recommendation,
    Speculation,
    TimeSpent,
    Valley,
    ValleyPoint,
    Verdict,
)
from bench.report.valley import valleys
from bench.results.records import Candidate, CellRecord, End, Load, Pair, Run
from bench.results.store import ResultsError, ResultsFolder
from bench.statistics import MIN_BLOCKS, SequentialPlan, corrected
from pdv_mp.emulation.device_name import is_emulated

__all__ = [
    "Analysis",
    "Cause",
    "CellSummary",
    "Choice",
    "Comparison",
    "Contrast",
    "Estimate",
    "GpuSummary",
    "Latency",
    "Noise",
    "Problem",
    "ProcessUse",
    "Recommendation",
    "Speculation",
    "TimeSpent",
    "Valley",
    "ValleyPoint",
    "Verdict",
    "analyse",
]


def analyse(folder: ResultsFolder) -> Analysis:
    """All that can be said of a run, whether it has ended or not.

    Raises ResultsError if the folder holds no run, nothing was measured yet, or a record is not
    what it should be.
    """
    run, end = folder.run(), folder.stopped()
    _check_names(run)
    records = folder.cells()
    _check_cells(run, records)
    if not records:
        raise ResultsError(f"{folder.path} holds no cells yet: nothing was measured")
    blocks = max(record.block for record in records)
    alpha = _alpha(run, end, blocks)
    cells = _measured(folder, run, records)
    summaries = {}
    bounds = Bounds(run)
    for place, cell in cells.items():
        summary = summarise(cell, run.objective, alpha)
        summaries[place] = replace(summary, bound=bounds.of(summary))
    noise = noises(run, cells, alpha)
    compared = comparisons(run, cells, summaries, noise, alpha)
    return Analysis(
        run=run,
        end=end,
        blocks=blocks,
        alpha=alpha,
        comparisons_alpha=corrected(alpha, comparisons_in(run)),
        cells=tuple(summaries.values()),
        comparisons=compared,
        noise=noise,
        valleys=valleys(run, cells, summaries, compared, alpha),
        recommendations=recommendations(run, summaries, compared, noise, alpha),
        warnings=tuple(_warnings(run, end, blocks, len(records), list(summaries.values()), noise)),
    )


def _alpha(run: Run, end: End | None, blocks: int) -> float:
    """What the intervals of a run may spend; one that was cut off has spent what its looks took."""
    if end is not None:
        return end.alpha
    plan = SequentialPlan(run.blocks)
    return plan.alpha_at_end(min(blocks, run.blocks), looked=run.precision is not None)


def _check_names(run: Run) -> None:
    """Raises ResultsError for names that are given twice or to nothing."""
    for kind, given in (
        ("pairs", [pair.name for pair in run.pairs]),
        ("candidates", [candidate.name for candidate in run.candidates]),
        ("loads", [load.name for load in run.loads]),
    ):
        if not given or len(set(given)) < len(given):
            raise ResultsError(f"the run's {kind} are {given}: each needs a name of its own")
    originals = {c.name for c in run.candidates if c.twin_of is None}
    for candidate in run.candidates:
        if candidate.twin_of is not None and candidate.twin_of not in originals:
            raise ResultsError(
                f"candidate {candidate.name!r} is a twin of {candidate.twin_of!r}, which is none "
                "of the run's candidates or a twin itself"
            )
    for configuration in run.configurations:
        device = str(configuration.options.get("model", {}).get("device", ""))
        if is_emulated(device):
            raise ResultsError(
                f"{configuration.candidate!r} was on {device}: emulated results are not reported "
                "as measured ones"
            )
    if run.reference not in originals:
        raise ResultsError(
            f"the run's reference is {run.reference!r}, which is none of its candidates or a twin"
        )


def _places(run: Run) -> Iterator[tuple[Pair, Candidate, Load]]:
    for pair, load, candidate in itertools.product(run.pairs, run.loads, run.candidates):
        yield pair, candidate, load


def _check_cells(run: Run, records: Sequence[CellRecord]) -> None:
    known = {(pair.name, candidate.name, load.name) for pair, candidate, load in _places(run)}
    for record in records:
        if (record.pair, record.candidate, record.load) not in known:
            raise ResultsError(
                f"cell {record.id} is of {record.candidate!r} under {record.load!r} with "
                f"{record.pair!r}, which the run does not name"
            )


def _measured(folder: ResultsFolder, run: Run, records: Sequence[CellRecord]) -> Cells:
    """All cells of the run, also those of which nothing was measured."""
    of: dict[tuple[str, str, str], list[CellRecord]] = {}
    for record in records:
        of.setdefault((record.pair, record.candidate, record.load), []).append(record)
    cells = {}
    for pair, candidate, load in _places(run):
        place = (pair.name, candidate.name, load.name)
        cells[place] = _one(folder, run, (pair, candidate, load), of.get(place, []))
    return cells


def _one(
    folder: ResultsFolder,
    run: Run,
    place: tuple[Pair, Candidate, Load],
    records: Sequence[CellRecord],
) -> CellBlocks:
    latest = {record.block: record for record in records}
    problems: list[Problem] = []
    counted: list[CellMetrics] = []
    warm_up: list[CellMetrics] = []
    for record in records:
        if record is not latest[record.block]:
            reason = record.failed or record.invalid or "it was measured again"
            problems.append(Problem(record.block, "replaced", reason))
        elif record.failed is not None:
            problems.append(Problem(record.block, "failed", record.failed))
        elif record.invalid is not None:
            problems.append(Problem(record.block, "invalid", record.invalid))
        else:
            metrics = measure(record, folder.requests(record), run.objective)
            if record.followed or not record.block:
                warm_up.append(metrics)
            elif metrics.tokens:
                counted.append(metrics)
            else:
                problems.append(Problem(record.block, "failed", NO_TOKENS))
    begun = sum(not (record.followed or not block) for block, record in latest.items())
    return CellBlocks(*place, begun, tuple(problems), tuple(counted), tuple(warm_up))


NO_TOKENS = "no token arrived in the window"

BUSY_CORES = 0.2
"""More than this used by other programs, on average, is warned of."""


def _warnings(
    run: Run,
    end: End | None,
    blocks: int,
    records: int,
    cells: Sequence[CellSummary],
    noise: Sequence[Noise],
) -> Iterator[str]:
    if end is None:
        yield (
            f"The run has not ended, or was cut off: {_count(blocks, 'block')} of {run.blocks} "
            f"{'was' if blocks == 1 else 'were'} begun."
        )
    if blocks < MIN_BLOCKS:
        yield f"Too few blocks to compare anything: {blocks}, and {MIN_BLOCKS} are needed."
    for kind, meaning in (
        ("failed", ("failed", "failed")),
        ("invalid", ("does not count", "do not count")),
    ):
        found = [(cell, p) for cell in cells for p in cell.problems if p.kind == kind]
        if found:
            cell, problem = found[0]
            yield (
                f"{_count(len(found), 'cell')} of {records} {meaning[len(found) > 1]}, such as "
                f"{cell.candidate} under {cell.load} with {cell.pair} in block {problem.block}: "
                f"{problem.reason}."
            )
    missing = [cell for cell in cells if not cell.blocks and not cell.problems]
    if missing:
        yield f"{_count(len(missing), 'cell')} of {len(cells)} were not measured in any block."
    if not noise:
        yield "No second server of any candidate ran, so what equal servers differ by is not known."
    unequal = [found for found in noise if found.holds is False]
    if unequal:
        worst = max(unequal, key=lambda found: found.floor)
        yield (
            f"Two servers of {worst.candidate} differed by {worst.floor - 1:.1%} under "
            f"{worst.load} with {worst.pair}, which is more than chance: something besides the "
            "candidates differs between servers, and this much counts as noise."
        )
    loads = [cell.host_load for cell in cells if cell.host_load is not None]
    if loads and sum(loads) / len(loads) > BUSY_CORES:
        yield (
            f"Other programs kept {sum(loads) / len(loads):.1f} cores of this machine busy on "
            "average while it was measured: all rates are too low, and the noise is high."
        )
    overloaded = [cell for cell in cells if cell.e2e.unfinished > cell.e2e.samples]
    if overloaded:
        cell = max(overloaded, key=lambda found: found.e2e.unfinished - found.e2e.samples)
        yield (
            f"In {_count(len(overloaded), 'cell')} of {len(cells)}, such as {cell.candidate} under "
            f"{cell.load} with {cell.pair}, more requests were still open at the windows' ends "
            "than had ended in them: windows are too short there, and end-to-end latencies too low."
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
