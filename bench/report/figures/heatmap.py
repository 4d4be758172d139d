"""Throughput ratios of all candidates, load by load, with the noise below them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle

from bench.report.figures.picture import Picture
from bench.report.figures.style import INK, MUTED, SMALL, new_figure
from bench.report.figures.view import View, load_label
from bench.report.summaries import Comparison
from bench.results.records import Load
from bench.statistics import MIN_BLOCKS, Ratio

LEAST_REACH = math.log2(1.1)
"""The scale never ends before this log2 ratio, so that noise does not look like a difference."""

MANY = 8
"""From so many loads on, a cell is too narrow for an interval in one line."""

_GREY, _FAILED = "#d9d9d9", "#ffffff"
_MAP: Colormap = LinearSegmentedColormap.from_list(
    "behind-ahead", ["#a63c00", "#f2a36b", "#f7f7f7", "#6fb1dc", "#00518f"]
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One ratio. ``shown``: whether it is a difference; ``failed``: there is nothing to show."""

    pair: str
    over: str
    under: str
    load: str
    ratio: Ratio | None
    floor: float
    verdict: str
    blocks: int
    shown: bool
    failed: bool


def draw(view: View) -> Picture:
    """One map for each pair, its columns the loads, closed loops first."""
    title = finding(view)
    grids = [_rows(view, pair) for pair in view.pairs]
    many = len(view.loads) >= MANY
    height = (0.62 if many else 0.46) * sum(map(len, grids)) + 0.85 * len(grids) + 0.9
    grey = "grey: no difference shown (the interval holds 1 or is within the noise)"
    figure = new_figure(title, view.more(f"{grey} · hatched: failed"), height)
    heights = [len(rows) for rows in grids]
    every = figure.subplots(len(grids), 1, squeeze=False, height_ratios=heights)[:, 0]
    cells = [cell for rows in grids for row in rows for cell in row]
    reach = max(
        [LEAST_REACH]
        + [abs(math.log2(cell.ratio.estimate)) for cell in cells if cell.ratio and cell.shown]
    )
    norm = Normalize(-reach, reach)
    for axes, rows, pair in zip(every, grids, view.pairs, strict=True):
        for y, row in enumerate(rows):
            for x, cell in enumerate(row):
                _draw_cell(axes, x, y, cell, norm, many)
        _frame(axes, view.loads, rows)
        if len(view.pairs) > 1:
            axes.set_title(pair, loc="left")
    ticks = [-reach, -reach / 2, 0.0, reach / 2, reach]
    bar = figure.colorbar(
        ScalarMappable(norm, _MAP), ax=list(every), ticks=ticks, pad=0.01, aspect=30
    )
    bar.ax.set_yticklabels([f"{2**tick:.2f}" for tick in ticks])
    bar.set_label("times the throughput (log2)")
    bar.outline.set_visible(False)
    twins = view.analysis.noise
    aa = (
        f" The last row of each map compares {twins[0].twin} with {twins[0].candidate}, two equal "
        "servers: that is noise."
        if twins
        else ""
    )
    return Picture(
        name="improvement_heatmap",
        title=title,
        alt=(
            "A table of throughput ratios, one row for each two candidates and one column for each "
            "load, blue where the first is ahead, orange where it is behind, grey where no "
            f"difference is shown. {title}."
        ),
        caption=(
            "The first candidate's tokens/s over the second's, with the interval of the ratio; all "
            "intervals hold at once. Grey: the interval holds 1, or comes closer to it than the "
            "noise of two equal servers. Hatched: a cell failed. Dotted frame: too few blocks to "
            f"compare.{aa}"
        ),
        columns=(
            "pair",
            "candidate",
            "reference",
            "load",
            "blocks",
            "ratio",
            "ratio_low",
            "ratio_high",
            "noise_floor",
            "verdict",
        ),
        rows=[
            (
                cell.pair,
                cell.over,
                cell.under,
                cell.load,
                cell.blocks,
                cell.ratio and cell.ratio.estimate,
                cell.ratio and cell.ratio.low,
                cell.ratio and cell.ratio.high,
                cell.floor,
                cell.verdict,
            )
            for cell in cells
        ],
        figure=figure,
    )


def finding(view: View) -> str:
    """How many of the comparisons show a difference, and which is the largest."""
    every = [_cell(view.analysis.comparison(*names)) for names in _compared(view)]
    shown = [cell for cell in every if cell.shown and cell.ratio is not None]
    failed = sum(cell.failed for cell in every)
    tail = f"; {failed} lack failed blocks" if failed else ""
    if failed == len(every):
        return f"Nothing to compare: blocks of all {failed} comparisons of throughput failed"
    few = sum(cell.verdict == "too few blocks" for cell in every)
    if few and few + failed == len(every):
        return f"Too few blocks to compare throughput: fewer than {MIN_BLOCKS}{tail}"
    tail = f"; {few} have too few blocks{tail}" if few else tail
    if not shown:
        return f"None of {len(every)} comparisons of throughput shows a difference{tail}"
    most = max(shown, key=lambda cell: abs(math.log(cell.ratio.estimate)) if cell.ratio else 0.0)
    assert most.ratio is not None
    ahead, behind, times = most.over, most.under, most.ratio.estimate
    if times < 1:
        ahead, behind, times = behind, ahead, 1 / times
    labels = {load.name: load_label(load) for load in view.loads}
    of = f" with {most.pair}" if len(view.pairs) > 1 else ""
    return (
        f"{len(shown)} of {len(every)} comparisons of throughput show a difference, the largest "
        f"{ahead} {times:.2f} times {behind} ({labels[most.load]}{of}){tail}"
    )


def _compared(view: View) -> list[tuple[str, str, str, str]]:
    return [
        (pair, load.name, over, under)
        for pair in view.pairs
        for under, over in combinations(_from_reference(view), 2)
        for load in view.loads
    ]


def _from_reference(view: View) -> list[str]:
    """The candidates, the reference first."""
    reference = view.analysis.run.reference
    return sorted(view.candidates, key=lambda name: name != reference)


def _rows(view: View, pair: str) -> list[list[Cell]]:
    rows = [
        [_cell(view.analysis.comparison(pair, load.name, over, under)) for load in view.loads]
        for under, over in combinations(_from_reference(view), 2)
    ]
    noise = {(n.twin, n.candidate, n.load): n for n in view.analysis.noise if n.pair == pair}
    for twin, candidate in dict.fromkeys((n.twin, n.candidate) for n in noise.values()):
        row = []
        for load in view.loads:
            found = noise[twin, candidate, load.name]
            sides = [view.analysis.cell(pair, name, load.name) for name in (twin, candidate)]
            failed = found.ratio is None and any(cell.blocks < cell.measured for cell in sides)
            verdict = {True: "noise", False: "noise beyond its interval", None: "too few blocks"}
            row.append(
                Cell(
                    pair,
                    twin,
                    candidate,
                    load.name,
                    found.ratio,
                    found.floor,
                    "failed" if failed else verdict[found.holds],
                    found.blocks,
                    shown=False,
                    failed=failed,
                )
            )
        rows.append(row)
    return rows


def _cell(found: Comparison) -> Cell:
    return Cell(
        found.pair,
        found.candidate,
        found.reference,
        found.load,
        found.ratio,
        found.floor,
        found.verdict,
        found.blocks,
        shown=found.verdict in ("ahead", "behind"),
        failed=found.verdict == "failed",
    )


def _draw_cell(axes: Axes, x: int, y: int, cell: Cell, norm: Normalize, many: bool) -> None:
    colour: object = _GREY
    hatch, edge, dashed = None, "white", "-"
    if cell.failed:
        colour, hatch, edge = _FAILED, "////", MUTED
    elif cell.verdict == "too few blocks":
        edge, dashed = MUTED, ":"
    elif cell.shown and cell.ratio is not None:
        colour = _MAP(norm(math.log2(cell.ratio.estimate)))
    axes.add_patch(
        Rectangle(
            (x + 0.02, y + 0.03),
            0.96,
            0.94,
            facecolor=colour,
            edgecolor=edge,
            hatch=hatch,
            linestyle=dashed,
            linewidth=0.8,
        )
    )
    if cell.ratio is None:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        text = "failed" if cell.failed else f"n = {cell.blocks}"
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=SMALL, bbox=box)
        return
    ink = INK
    if cell.shown and abs(norm(math.log2(cell.ratio.estimate)) - 0.5) > 0.36:
        ink = "white"
    value = f"{cell.ratio.estimate:.2f}"
    between = "–\n" if many else "–"
    interval = f"{cell.ratio.low:.2f}{between}{cell.ratio.high:.2f}"
    put: dict[str, Any] = {"ha": "center", "color": ink, "linespacing": 1.0}
    if cell.failed:
        put["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    middle = y + (0.34 if many else 0.48)
    axes.text(x + 0.5, middle, value, va="bottom", fontsize=9.5, fontweight="bold", **put)
    axes.text(x + 0.5, middle + 0.04, interval, va="top", fontsize=SMALL, **put)


def _frame(axes: Axes, loads: Sequence[Load], rows: Sequence[Sequence[Cell]]) -> None:
    axes.set_xlim(0, len(loads))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks(
        [x + 0.5 for x in range(len(loads))],
        [load_label(load).replace(" r", "\nr") for load in loads],
    )
    axes.set_yticks(
        [y + 0.5 for y in range(len(rows))], [f"{row[0].over} ÷\n{row[0].under}" for row in rows]
    )
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
