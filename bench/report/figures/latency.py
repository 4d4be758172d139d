"""End-to-end latency against concurrency: average and 99th percentile."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from bench.report.figures import findings
from bench.report.figures.picture import Picture
from bench.report.figures.series import (
    COLUMNS,
    HOW_TO_READ,
    draw_lines,
    estimate_columns,
    estimate_values,
    name_lines,
    panels,
    place,
)
from bench.report.figures.style import MUTED, new_figure, plain_numbers
from bench.report.figures.view import View
from bench.report.summaries import CellSummary, Estimate
from bench.statistics import samples_needed

NEEDED = samples_needed(0.99)
"""Fewer requests have no 99th percentile that anything could be said of."""

OUTSIDE = 5.0
"""An interval that ends so many times beyond all values is cut off by the axis."""


def draw(view: View) -> Picture:
    """A row for each pair."""
    title = findings.by_pair(view, lambda pair: findings.latency(view, pair))
    figure = new_figure(title, view.footer, 0.8 + 3.3 * len(view.pairs))
    named = []
    for row, pair in zip(panels(figure, len(view.pairs), 2), view.pairs, strict=True):
        of = f", {pair}" if len(view.pairs) > 1 else ""
        for axes, value, what in zip(row, (average, tail), ("average", "P99"), strict=True):
            ends = draw_lines(axes, view, pair, value)
            axes.set_title(f"{what}{of}", loc="left")
            axes.set_ylabel("end-to-end latency, ms")
            axes.set_yscale("log")
            named.append((axes, ends))
        limits = _limits(view, pair)
        for axes in row:
            axes.set_ylim(limits)
            steps = (1.0, 2.0, 5.0) if limits[1] < 1000 * limits[0] else (1.0,)
            axes.yaxis.set_major_locator(LogLocator(10, steps))
            axes.yaxis.set_major_formatter(plain_numbers)
            axes.yaxis.set_minor_formatter(NullFormatter())
        _say_too_few(row[1], view, pair)
    name_lines(figure, named)
    cells = [
        cell
        for pair in view.pairs
        for candidate in view.candidates
        for _, cell in view.cells(pair, candidate)
    ]
    return Picture(
        name="latency_comparison",
        title=title,
        alt=(
            "Lines of end-to-end latency in ms, on a logarithmic axis, against the number of "
            f"clients at a time, one for each of {findings.listed(view.candidates)}: the average "
            f"on the left, the 99th percentile on the right. {title}."
        ),
        caption=(
            "From a request's scheduled arrival to its last token. In a closed loop it is tied to "
            "throughput: whoever serves more requests per second at so many clients has the lower "
            f"average. A P99 needs {NEEDED} requests; where there are fewer it is not shown. "
            f"{HOW_TO_READ} Those of P99 are of order statistics, over requests. "
            "Wide intervals may end outside of the axis."
        ),
        columns=(
            *COLUMNS,
            "blocks",
            "requests",
            *estimate_columns("e2e_mean_ms"),
            *estimate_columns("e2e_p99_ms"),
            "unfinished",
        ),
        rows=[
            (
                *place(cell),
                cell.blocks,
                cell.e2e.samples,
                *estimate_values(cell.e2e.mean),
                *estimate_values(tail(cell)),
                cell.e2e.unfinished,
            )
            for cell in cells
        ],
        figure=figure,
    )


def _limits(view: View, pair: str) -> tuple[float, float]:
    """Of both panels, so that an average and a percentile can be told apart. An interval of nearly
    nothing must not leave the values a strip of the axis: it may end outside."""
    found = [
        estimate
        for candidate in view.candidates
        for _, cell in view.cells(pair, candidate)
        for estimate in (average(cell), tail(cell))
        if estimate is not None and estimate.value > 0
    ]
    if not found:
        return 1.0, 10.0
    low, high = min(e.value for e in found), max(e.value for e in found)
    ends = [end for e in found for end in (e.low, e.high) if end is not None and end > 0]
    lowest, highest = min([low, *ends]), max([high, *ends])
    return max(lowest, low / OUTSIDE) / 1.25, min(highest, high * OUTSIDE) * 1.25


def average(cell: CellSummary) -> Estimate | None:
    """Mean end-to-end latency."""
    return cell.e2e.mean


def tail(cell: CellSummary) -> Estimate | None:
    """The 99th percentile of end-to-end latency."""
    found = cell.e2e.p99
    if found is None:
        return None
    return Estimate(found.value, found.low, found.high, cell.blocks)


def _say_too_few(axes: Axes, view: View, pair: str) -> None:
    lacking = _lacking(view, pair)
    if not lacking:
        return
    where = findings.span(lacking, view.concurrencies)
    text = f"n too small at {where}\n(fewer than {NEEDED} requests)"
    if len(lacking) == len(view.concurrencies):
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
    else:
        axes.text(0.02, 0.87, text, transform=axes.transAxes, fontsize=8, va="top", color=MUTED)


def _lacking(view: View, pair: str) -> Sequence[int]:
    """Concurrencies at which somebody's percentile is not known, for all that it has blocks."""
    found = []
    for load in view.closed:
        cells = [view.analysis.cell(pair, name, load.name) for name in view.candidates]
        if any(cell.blocks and cell.e2e.p99 is None for cell in cells):
            found.append(load.concurrency or 0)
    return found
