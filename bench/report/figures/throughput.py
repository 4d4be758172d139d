"""Throughput against concurrency."""

from __future__ import annotations

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
from bench.report.figures.style import new_figure, plain_numbers
from bench.report.figures.view import View


def draw(view: View) -> Picture:
    """Output tokens/s, one panel for each pair."""
    title = findings.throughput(view)
    rows = -(-len(view.pairs) // 2)
    columns = min(2, len(view.pairs))
    figure = new_figure(title, view.footer, 0.8 + 3.4 * rows)
    grid = [axes for row in panels(figure, rows, columns) for axes in row]
    named = []
    for axes, pair in zip(grid, view.pairs, strict=False):
        ends = draw_lines(axes, view, pair, lambda cell: cell.throughput)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("output tokens/s")
        axes.yaxis.set_major_formatter(plain_numbers)
        if len(view.pairs) > 1:
            axes.set_title(pair, loc="left")
        named.append((axes, ends))
    for axes in grid[len(view.pairs) :]:
        axes.remove()
    name_lines(figure, named)
    return Picture(
        name="throughput_comparison",
        title=title,
        alt=(
            f"Lines of output tokens per second against the number of clients at a time, one for "
            f"each of {findings.listed(view.candidates)}. {title}.{_highest(view)}"
        ),
        caption=(
            "Output tokens per second of the steady window, every token counted, also those of "
            f"requests that the window's end cut off; geometric means over blocks. {HOW_TO_READ}"
        ),
        columns=(*COLUMNS, "blocks", *estimate_columns("tokens_per_s"), "problems"),
        rows=[
            (*place(cell), cell.blocks, *estimate_values(cell.throughput), len(cell.problems))
            for pair in view.pairs
            for candidate in view.candidates
            for _, cell in view.cells(pair, candidate)
        ],
        figure=figure,
    )


def _highest(view: View) -> str:
    rates = {
        findings.where(view, cell): cell.throughput.value
        for cell in view.counted(lambda cell: cell.throughput)
        if cell.throughput is not None
    }
    if not rates:
        return ""
    best = max(rates, key=rates.__getitem__)
    return f" The highest is {rates[best]:.0f} tokens/s, {best}."
