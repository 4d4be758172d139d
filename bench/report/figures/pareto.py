"""Tokens/s for each user against tokens/s for all: what a server can trade one for the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes

from bench.report.figures import findings
from bench.report.figures.labels import Box, free_place
from bench.report.figures.picture import Picture
from bench.report.figures.series import (
    COLUMNS,
    estimate_columns,
    estimate_values,
    panels,
    place,
)
from bench.report.figures.style import GRID, SMALL, new_figure, plain_numbers
from bench.report.figures.view import View
from bench.report.summaries import CellSummary, Estimate

Point = tuple[float, float, CellSummary]


def draw(view: View) -> Picture:
    """One panel for each pair."""
    title = findings.by_pair(view, lambda pair: finding(view, pair))
    rows, columns = -(-len(view.pairs) // 2), min(2, len(view.pairs))
    figure = new_figure(title, view.footer, 0.8 + 4.1 * rows)
    grid = [axes for row in panels(figure, rows, columns) for axes in row]
    for axes, pair in zip(grid, view.pairs, strict=False):
        axes.grid(visible=True, axis="x", color=GRID, linewidth=0.6)
        for name in view.candidates:
            _line(axes, view, name, points(view, pair, name))
        axes.set_xlabel("tokens/s for each user (1 / mean TPOT)")
        axes.set_ylabel("output tokens/s for all")
        axes.set_xlim(left=0, right=axes.get_xlim()[1] * 1.06)
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.06)
        axes.xaxis.set_major_formatter(plain_numbers)
        axes.yaxis.set_major_formatter(plain_numbers)
        if len(view.pairs) > 1:
            axes.set_title(pair, loc="left")
    for axes in grid[len(view.pairs) :]:
        axes.remove()
    figure.draw_without_rendering()
    for axes, pair in zip(grid, view.pairs, strict=False):
        _label(axes, view, {name: points(view, pair, name) for name in view.candidates})
    return Picture(
        name="pareto",
        title=title,
        alt=(
            "Lines of output tokens per second for all users against tokens per second for each "
            f"user, one for each of {findings.listed(view.candidates)}, each point a number of "
            f"clients at a time. {title}."
        ),
        caption=(
            "Up is more work done, right is a faster stream for each user; numbers at the points "
            "are clients at a time. A point is on the frontier if no other point is at least as "
            "good in both, by means. A user's rate is between the first token and the last; the "
            "wait for the first token is not in it. Bars are intervals over blocks."
        ),
        columns=(
            *COLUMNS,
            "blocks",
            *estimate_columns("tokens_per_s_per_user"),
            *estimate_columns("tokens_per_s"),
            "on_frontier",
        ),
        rows=[
            (
                *place(cell),
                cell.blocks,
                *estimate_values(per_user(cell)),
                *estimate_values(cell.throughput),
                cell in frontier(view, pair),
            )
            for pair in view.pairs
            for candidate in view.candidates
            for _, cell in view.cells(pair, candidate)
        ],
        figure=figure,
    )


def per_user(cell: CellSummary) -> Estimate | None:
    """1 / mean TPOT, in tokens/s."""
    found = cell.tpot.mean
    if found is None or found.value <= 0:
        return None
    low = 1000 / found.high if found.high is not None else None
    high = 1000 / found.low if found.low is not None and found.low > 0 else None
    return Estimate(1000 / found.value, low, high, found.blocks)


def points(view: View, pair: str, candidate: str) -> list[Point]:
    """Of the closed loops, by their number of clients."""
    found = []
    for _, cell in view.cells(pair, candidate):
        user = per_user(cell)
        if user is not None and cell.throughput is not None:
            found.append((user.value, cell.throughput.value, cell))
    return found


def frontier(view: View, pair: str) -> list[CellSummary]:
    """Cells that no other cell is at least as good as in both, and better in one."""
    every = [point for name in view.candidates for point in points(view, pair, name)]
    return [
        cell
        for x, y, cell in every
        if not any((a >= x and b >= y) and (a > x or b > y) for a, b, _ in every)
    ]


def finding(view: View, pair: str) -> str:
    """Whose points are on the frontier."""
    cells = frontier(view, pair)
    if not cells:
        return "nothing could be counted"
    parts = []
    names = dict.fromkeys(cell.candidate for cell in cells)
    for name in sorted(names, key=lambda name: -sum(cell.candidate == name for cell in cells)):
        where = [cell.shape.concurrency or 0 for cell in cells if cell.candidate == name]
        parts.append(f"{name} ({findings.span(where, view.concurrencies)})")
    if len(view.candidates) < 2:
        return f"the frontier of one user's tokens/s against all users' is {parts[0]}"
    if len(parts) == 1:
        name = cells[0].candidate
        return f"by means only {name} is on the frontier of one user's tokens/s against all users'"
    return (
        "by means on the frontier of one user's tokens/s against all users': "
        f"{findings.listed(parts)}"
    )


def _line(axes: Axes, view: View, name: str, found: Sequence[Point]) -> None:
    look = view.looks[name]
    axes.plot([x for x, _, _ in found], [y for _, y, _ in found], **look.line)
    for x, y, cell in found:
        user, rate = per_user(cell), cell.throughput
        if user and user.low is not None and user.high is not None:
            axes.plot([user.low, user.high], [y, y], color=look.colour, linewidth=1.0)
        if rate and rate.low is not None and rate.high is not None:
            axes.plot([x, x], [rate.low, rate.high], color=look.colour, linewidth=1.0)


def _label(axes: Axes, view: View, lines: dict[str, list[Point]]) -> None:
    """Names at the lines' ends and numbers of clients where there is room."""
    taken = [box for line in lines.values() for found in line for box in _bars(axes, found)]
    places = {
        name: [tuple(axes.transData.transform((x, y))) for x, y, _ in found]
        for name, found in lines.items()
    }
    for spots in places.values():
        taken += [Box.around(x, y, 9, 9) for x, y in spots]
        for (x, y), (a, b) in pairwise(spots):
            taken += [
                Box.around(x + (a - x) * step / 8, y + (b - y) * step / 8, 3, 3)
                for step in range(1, 8)
            ]
    area = axes.get_window_extent()
    inside = Box(area.x0, area.y0, area.x1 + 40, area.y1)
    scale = axes.figure.dpi / 72
    wanted: list[tuple[int, str, str, float, float]] = []
    for name, spots in places.items():
        for (x, y), (_, _, cell) in zip(spots, lines[name], strict=True):
            is_end = (x, y) in (spots[0], spots[-1])
            wanted.append((1 if is_end else 2, name, str(cell.shape.concurrency), x, y))
        if spots:
            # The name stands where the line begins: few clients, a fast stream.
            wanted.append((0, name, name, *spots[0]))
    for rank, name, text, x, y in sorted(wanted, key=lambda found: found[0]):
        is_name = not rank
        width = 0.62 * SMALL * scale * len(text) * (1.1 if is_name else 1.0) + 2
        box = free_place(x, y, width, 1.15 * SMALL * scale, 7 * scale, taken, inside)
        if box is None:
            continue
        taken.append(box)
        left, up = axes.transData.inverted().transform((box.x_middle, box.y_middle))
        axes.text(
            left,
            up,
            text,
            color=view.looks[name].text,
            fontsize=SMALL,
            ha="center",
            va="center",
            fontweight="bold" if is_name else "normal",
        )


def _bars(axes: Axes, point: Point) -> list[Box]:
    """What the intervals of a point take."""
    x, y, cell = point
    user, rate = per_user(cell), cell.throughput
    ends: list[tuple[float, float, float, float]] = []
    if user is not None and user.low is not None and user.high is not None:
        ends.append((user.low, y, user.high, y))
    if rate is not None and rate.low is not None and rate.high is not None:
        ends.append((x, rate.low, x, rate.high))
    found = []
    for left, bottom, right, top in ends:
        (left, bottom), (right, top) = axes.transData.transform([(left, bottom), (right, top)])
        found.append(Box(left - 3, bottom - 3, right + 3, top + 3))
    return found
