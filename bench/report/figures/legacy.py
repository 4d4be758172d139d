"""The same runs counted as the sources did and honestly, with both admissions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes

from bench.legacy.counts import LegacyCell, Side
from bench.legacy.results import Legacy
from bench.legacy.tables import said_ratio
from bench.report.figures.picture import Picture
from bench.report.figures.style import GRID, INK, Look, new_figure, plain_numbers, say_beside
from bench.report.figures.view import View, footer
from bench.results.records import Run


def draw(view: View, found: Legacy, run: Run) -> Picture:
    """Two panels of the same scale, a bar for each topology with each
    admission. ``run``: that of the legacy window."""
    title = finding(found)
    facts = found.facts
    blocks = len({cell.block for cell in found.cells if cell.counts})
    sides = list(facts.sides.values())
    figure = new_figure(title, footer(run, blocks), 1.6 + 0.46 * len(sides))
    left, right = figure.subplots(1, 2, sharex=True)
    looks = _looks(view, sides)
    _panel(left, found.cells, sides, looks, "legacy_tokens_per_s")
    _panel(right, found.cells, sides, looks, "honest_tokens_per_s")
    left.set_title("legacy: tokens of completed requests", loc="left")
    right.set_title("honest: all tokens in the window", loc="left")
    left.set_yticks(
        range(len(sides)), [f"{s.topology},\n{s.admission} ({s.admitted})" for s in sides]
    )
    right.set_yticks(range(len(sides)), [""] * len(sides))
    return Picture(
        name="legacy_and_honest",
        title=title,
        alt=(
            "Two panels of bars of tokens/s, one for each of two topologies with bounded and with "
            "unbounded admission: on the left only tokens of requests that completed in the window "
            f"count, on the right all. {title}."
        ),
        caption=(
            "Bars are means over blocks, points the blocks. In brackets: how many requests the "
            "admission lets in at once. Both panels are of the same requests; only the counting "
            f"differs. Asked for were {facts.overload:.1f} times the tokens that these servers can "
            "generate in the window on average."
        ),
        columns=(
            "pair",
            "topology",
            "admission",
            "admitted",
            "block",
            "offered_requests",
            "completed",
            "legacy_tokens_per_s",
            "honest_tokens_per_s",
            "failed",
            "invalid",
        ),
        rows=[
            (
                cell.pair,
                cell.topology,
                cell.admission,
                cell.admitted,
                cell.block,
                cell.offered_requests,
                cell.completed,
                cell.legacy_tokens_per_s,
                cell.honest_tokens_per_s,
                cell.failed,
                cell.invalid,
            )
            for cell in found.cells
        ],
        figure=figure,
    )


def finding(found: Legacy) -> str:
    """The two ratios of the sources' comparison."""
    if found.legacy is None or found.honest is None:
        return "No block has all four cells, so the two ways of counting are not compared"
    facts = found.facts
    return (
        f"Counting completed requests only, {facts.candidate} with bounded admission has "
        f"{said_ratio(found.legacy)} times the tokens/s of {facts.reference} with unbounded; "
        f"counting all tokens, {said_ratio(found.honest)} times"
        f"{'' if found.honest.enough_blocks else ' (too few blocks to rely on)'}"
    )


def _looks(view: View, sides: Sequence[Side]) -> dict[str, Look]:
    """Those of the candidates of the same names; others take what is left over."""
    names = list(dict.fromkeys(side.topology for side in sides))
    spare = [look for name, look in view.looks.items() if name not in names]
    return {
        name: view.looks[name] if name in view.looks else spare[n % len(spare)]
        for n, name in enumerate(names)
    }


def _panel(
    axes: Axes,
    cells: Sequence[LegacyCell],
    sides: Sequence[Side],
    looks: dict[str, Look],
    metric: str,
) -> None:
    most = max((float(getattr(cell, metric)) for cell in cells), default=0.0) or 1.0
    for y, side in enumerate(sides):
        here = [c for c in cells if (c.topology, c.admission) == (side.topology, side.admission)]
        values = [float(getattr(cell, metric)) for cell in here if cell.counts]
        if not values:
            say_beside(axes, 0, y, "failed")
            continue
        look = looks[side.topology]
        bounded = side.admission == "bounded"
        axes.barh(
            y,
            statistics.fmean(values),
            0.66,
            color=look.colour if bounded else "white",
            edgecolor=look.colour,
            hatch=None if bounded else "////",
            linewidth=1.2,
        )
        axes.plot(values, [y] * len(values), "o", color=INK, markersize=3, zorder=4)
        text = f"{statistics.fmean(values):,.0f}".replace(",", "\u202f")
        say_beside(axes, max(values), y, text)
    axes.set_xlim(0, max(axes.get_xlim()[1], 1.15 * most))
    axes.set_ylim(len(sides) - 0.5, -0.5)
    axes.set_xlabel("tokens/s")
    axes.xaxis.set_major_formatter(plain_numbers)
    axes.grid(visible=True, axis="x", color=GRID, linewidth=0.6)
