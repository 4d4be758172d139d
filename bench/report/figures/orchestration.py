"""The share of a request's time that is orchestration, against concurrency."""

from __future__ import annotations

from matplotlib.ticker import PercentFormatter

from bench.report.figures import findings
from bench.report.figures.picture import Picture
from bench.report.figures.series import (
    COLUMNS,
    draw_lines,
    estimate_columns,
    estimate_values,
    name_lines,
    panels,
    place,
)
from bench.report.figures.style import new_figure
from bench.report.figures.view import View
from bench.report.summaries import CellSummary, Estimate


def draw(view: View) -> Picture | None:
    """One panel for each pair; None without timelines."""
    title = findings.by_pair(view, lambda pair: finding(view, pair))
    counted = view.counted(share)
    if not counted:
        return None
    rows, columns = -(-len(view.pairs) // 2), min(2, len(view.pairs))
    figure = new_figure(title, view.more(requests(counted)), 0.8 + 3.2 * rows)
    grid = [axes for row in panels(figure, rows, columns) for axes in row]
    named = []
    top = max(e.high or e.value for cell in counted if (e := share(cell)) is not None)
    for axes, pair in zip(grid, view.pairs, strict=False):
        named.append((axes, draw_lines(axes, view, pair, share)))
        axes.set_ylim(0, 1.15 * top)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylabel("orchestration, share of a request's time")
        if len(view.pairs) > 1:
            axes.set_title(pair, loc="left")
    for axes in grid[len(view.pairs) :]:
        axes.remove()
    name_lines(figure, named)
    over = findings.listed(sorted({cell.time_spent.over for cell in counted if cell.time_spent}))
    return Picture(
        name="orchestration_share",
        title=title,
        alt=(
            "Lines of the share of a request's time that is orchestration against the number of "
            f"clients at a time, one for each of {findings.listed(view.candidates)}. {title}."
        ),
        caption=(
            "Orchestration is the time a request's next token waits for messages, hand-overs "
            "between workers and text, never for computing, a queue or a busy worker. From "
            "timelines, which every request of the warm-up block carries and which cost a little "
            f"themselves. Bars are intervals over {over}. A cross on the axis: the cell failed."
        ),
        columns=(*COLUMNS, "requests", *estimate_columns("orchestration_share"), "over"),
        rows=[
            (
                *place(cell),
                cell.time_spent.requests if cell.time_spent else 0,
                *estimate_values(share(cell)),
                cell.time_spent.over if cell.time_spent else None,
            )
            for pair in view.pairs
            for candidate in view.candidates
            for _, cell in view.cells(pair, candidate)
        ],
        figure=figure,
    )


def share(cell: CellSummary) -> Estimate | None:
    """Orchestration / all of a request's time."""
    return cell.orchestration_share


def requests(cells: list[CellSummary]) -> str:
    """How many requests with timelines the cells have."""
    found = [cell.time_spent.requests for cell in cells if cell.time_spent is not None]
    low, high = min(found), max(found)
    return f"timelines of {low if low == high else f'{low} to {high}'} requests per cell"


def finding(view: View, pair: str) -> str:
    """Whose share is largest, and how it changes with concurrency."""
    found = {
        (name, concurrency): estimate.value
        for name in view.candidates
        for concurrency, cell in view.cells(pair, name)
        if (estimate := share(cell)) is not None
    }
    if not found:
        return "no timelines were recorded"
    low, high = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    return (
        f"orchestration takes {found[low]:.1%} ({low[0]}, C = {low[1]}) to {found[high]:.1%} "
        f"({high[0]}, C = {high[1]}) of a request's time"
    )
