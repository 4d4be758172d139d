"""A picture of an ablation, with its one finding as the title."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.ablations.catalogue import Ablation
from bench.report.analysis import Analysis
from bench.report.figures.picture import Picture
from bench.report.figures.style import MUTED, concurrency_axis, new_figure
from bench.report.figures.view import footer
from bench.report.summaries import NOT_COMPARED

TOO_FEW = "too few blocks"

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#000000")
_MARKERS = "os^DvPX"


@dataclass(frozen=True, slots=True)
class Point:
    """A value's rate over that of the first one. ``low``, ``high``: None without an interval.
    ``verdict``: as in a comparison, ``ahead``, ``behind``, or none of these."""

    value: str
    concurrency: int
    ratio: float
    low: float | None
    high: float | None
    verdict: str


def points_of(ablation: Ablation, analysis: Analysis) -> list[Point]:
    """All that could be compared."""
    clients = {load.name: load.concurrency for load in analysis.run.loads}
    first = analysis.run.reference
    found = []
    for item in analysis.comparisons:
        concurrency, twin = clients.get(item.load), item.candidate not in ablation.candidates
        if item.reference == first and item.ratio is not None and concurrency and not twin:
            ratio = item.ratio
            value = item.candidate.partition("=")[2]
            found.append(
                Point(value, concurrency, ratio.estimate, ratio.low, ratio.high, item.verdict)
            )
    return found


def finding(says: str, first: str, points: Sequence[Point]) -> str:
    """One sentence: what is shown to be ahead or behind by most, or that nothing is, and then how
    large a difference the intervals leave room for."""
    subject = says[0].upper() + says[1:]
    compared = [point for point in points if point.verdict not in NOT_COMPARED]
    if not compared:
        return f"{subject}: {TOO_FEW} to compare"
    shown = [point for point in compared if point.verdict in ("ahead", "behind")]
    if not shown:
        ends = [end for point in compared for end in (point.low, point.high) if end is not None]
        widest = max(abs(end - 1) for end in ends)
        left_out = len(points) - len(compared)
        beside = f"; {left_out} of {len(points)} were not compared" if left_out else ""
        return (
            f"{subject} makes no difference that was shown (intervals reach {widest:.0%} from "
            f"{first}{beside})"
        )
    most = max(shown, key=lambda point: abs(point.ratio - 1))
    what = "more" if most.ratio > 1 else "less"
    return (
        f"{subject}: {most.value} yields {abs(most.ratio - 1):.0%} {what} than {first} with "
        f"{most.concurrency} {'client' if most.concurrency == 1 else 'clients'}"
    )


def draw(ablation: Ablation, analysis: Analysis) -> Picture | None:
    """Ratios with their intervals against concurrency, one line for each value."""
    points = points_of(ablation, analysis)
    return draw_points(
        ablation.name,
        finding(ablation.says, ablation.values[0], points),
        f"{ablation.topology}, {ablation.varied}",
        ablation.values[0],
        points,
        footer(analysis.run, analysis.blocks),
    )


def draw_points(
    name: str, title: str, varied: str, first: str, points: Sequence[Point], below: str
) -> Picture | None:
    """The same of points from anywhere; None without any."""
    if not points:
        return None
    figure = new_figure(title, below, 3.4)
    axes = figure.subplots()
    for number, value in enumerate(dict.fromkeys(point.value for point in points)):
        mine = sorted((p for p in points if p.value == value), key=lambda p: p.concurrency)
        reach = [
            [0.0 if p.low is None else p.ratio - p.low for p in mine],
            [0.0 if p.high is None else p.high - p.ratio for p in mine],
        ]
        axes.errorbar(
            [p.concurrency * 1.02 ** (number - 2) for p in mine],
            [p.ratio for p in mine],
            yerr=reach,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            label=value,
            capsize=2,
        )
    axes.axhline(1, color=MUTED, linewidth=0.8)
    concurrency_axis(axes, [point.concurrency for point in points])
    axes.set_ylabel(f"output tokens/s ÷ those of {first}")
    beside = varied.replace(", ", ",\n")
    axes.legend(frameon=False, title=beside, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return Picture(
        name=f"ablation_{name}",
        title=title,
        alt=f"Ratios against clients, one line for each value of {varied}. {title}.",
        caption=f"Above 1: faster than with {first}. Intervals hold all at once with 95 %.",
        columns=("value", "concurrency", "ratio", "low", "high", "verdict"),
        rows=[(p.value, p.concurrency, p.ratio, p.low, p.high, p.verdict) for p in points],
        figure=figure,
    )
