"""Lines over concurrency: one for each candidate, with intervals, names and what failed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.figures.labels import End, label_ends
from bench.report.figures.style import GRID, INK, SMALL, Look, concurrency_axis
from bench.report.figures.view import Value, View
from bench.report.summaries import CellSummary, Estimate

COLUMNS = ("pair", "candidate", "load", "concurrency")
"""What the rows of every picture's numbers begin with."""

HOW_TO_READ = (
    "Bars are intervals over blocks. A hollow marker: some of the cell's blocks failed or do not "
    "count; a cross on the axis: all of them."
)


def place(cell: CellSummary) -> tuple[str, str, str, int | None]:
    """The first columns of a row."""
    return cell.pair, cell.candidate, cell.load, cell.shape.concurrency


def estimate_columns(name: str) -> tuple[str, str, str]:
    """The columns of an estimate."""
    return name, f"{name}_low", f"{name}_high"


def estimate_values(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """An estimate as the columns have it."""
    if estimate is None:
        return None, None, None
    return estimate.value, estimate.low, estimate.high


def panels(figure: Figure, rows: int, columns: int) -> list[list[Axes]]:
    """So many axes, each with a grid of faint lines."""
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.grid(visible=True, which="major", axis="y", color=GRID, linewidth=0.6)
    return [list(row) for row in grid]


def draw_lines(axes: Axes, view: View, pair: str, value: Value, last: bool = True) -> list[End]:
    """The lines of one pair, and where they end. ``last``: with a name for the x axis."""
    ends: list[End] = []
    concurrencies = view.concurrencies
    span = max(math.log2(concurrencies[-1] / concurrencies[0]), 1.0)
    lost: list[float] = []
    for turn, candidate in enumerate(view.candidates):
        look = view.looks[candidate]
        # Beside each other, so that an interval does not hide another one.
        aside = 2 ** (0.007 * span * (turn - (len(view.candidates) - 1) / 2))
        cells = view.cells(pair, candidate)
        found = [(c * aside, cell, value(cell)) for c, cell in cells]
        points = [(x, cell, e) for x, cell, e in found if e is not None]
        axes.plot(
            [x for x, _, _ in points],
            [e.value for _, _, e in points],
            **{**look.line, "marker": ""},
        )
        for hollow in (False, True):
            _draw_points(axes, look, [p for p in points if bool(p[1].problems) == hollow], hollow)
        for concurrency, cell in cells:
            if not cell.blocks and cell.problems:
                axes.plot(
                    [concurrency * aside],
                    [0.03],
                    marker="x",
                    color=look.colour,
                    zorder=5,
                    markersize=7,
                    markeredgewidth=2,
                    transform=axes.get_xaxis_transform(),
                    clip_on=False,
                )
                lost.append(concurrency * aside)
        if points:
            ends.append(End(points[-1][0], points[-1][2].value, candidate, look.text))
    concurrency_axis(axes, concurrencies, last)
    if lost:
        near_end = lost[0] > concurrencies[-1] / 2
        axes.text(
            lost[0] * 2 ** ((-0.03 if near_end else 0.03) * span),
            0.03,
            "failed",
            color=INK,
            fontsize=SMALL,
            transform=axes.get_xaxis_transform(),
            va="center",
            ha="right" if near_end else "left",
        )
    return ends


def _draw_points(
    axes: Axes, look: Look, points: Sequence[tuple[float, CellSummary, Estimate]], hollow: bool
) -> None:
    if not points:
        return
    estimates = [estimate for _, _, estimate in points]
    axes.errorbar(
        [x for x, _, _ in points],
        [e.value for e in estimates],
        yerr=[[_below(e) for e in estimates], [_above(e) for e in estimates]],
        **{**look.line, "linestyle": "none"},
        capsize=2.5,
        elinewidth=1.1,
        markerfacecolor="white" if hollow else look.colour,
        zorder=3,
    )


def _below(estimate: Estimate) -> float:
    return 0.0 if estimate.low is None else estimate.value - estimate.low


def _above(estimate: Estimate) -> float:
    return 0.0 if estimate.high is None else estimate.high - estimate.value


def name_lines(figure: Figure, named: Sequence[tuple[Axes, Sequence[End]]]) -> None:
    """Writes the candidates' names once all limits are final."""
    figure.draw_without_rendering()
    for axes, ends in named:
        label_ends(axes, ends)
