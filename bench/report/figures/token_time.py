"""Where a token's time goes: stacked bars of the timelines' groups of states."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bench.report.figures import findings
from bench.report.figures.picture import Picture
from bench.report.figures.series import COLUMNS, place
from bench.report.figures.style import (
    GRID,
    LEGEND_COLUMNS,
    legend_below,
    new_figure,
    plain_numbers,
    say_beside,
)
from bench.report.figures.view import View, load_label, shown_loads
from bench.report.states import GROUPS, ORCHESTRATION_GROUPS
from bench.report.summaries import CellSummary

MOST_LOADS = 4
"""Panels of the picture; its numbers hold all loads."""

_COMPUTE = ("#08306b", "#2171b5", "#6baed6", "#b5d4e9")
_ORCHESTRATION = ("#7f2704", "#d94801", "#fdae6b", "#f7d08a")
_WAITING = ("#4d4d4d", "#969696", "#d0d0d0")


def draw(view: View) -> Picture | None:
    """A row for each pair, a panel for each load, a bar for each candidate; None without
    timelines."""
    loads = shown_loads(view.closed or view.loads, MOST_LOADS)
    cells = _cells(view)
    used = [g for g in GROUPS if any(c.time_spent and c.time_spent.groups[g] > 0 for c in cells)]
    if not used:
        return None
    title = finding(view)
    legend_rows = -(-len(used) // LEGEND_COLUMNS)
    rows = len(view.pairs)
    height = 0.95 + 0.24 * legend_rows + rows * (0.75 + 0.42 * len(view.candidates))
    figure = new_figure(title, view.footer, height, legend_rows)
    grid = figure.subplots(rows, len(loads), squeeze=False)
    colours = _colours()
    for row, pair in zip(grid, view.pairs, strict=True):
        for axes, load in zip(row, loads, strict=True):
            here = [view.analysis.cell(pair, name, load.name) for name in view.candidates]
            _bars(axes, here, used, colours)
            of = f", {pair}" if rows > 1 else ""
            axes.set_title(f"{load_label(load)}{of}", loc="left")
            axes.set_xlabel("ms per token of a request")
            axes.set_yticks(
                range(len(here)), view.candidates if axes is row[0] else [""] * len(here)
            )
    legend_below(figure, view.footer, [Patch(color=colours[g]) for g in used], used)
    return Picture(
        name="token_time",
        title=title,
        alt=(
            "Stacked bars of the time that a request takes per token, in ms, divided into "
            f"computing, orchestration and waiting, one bar for each of "
            f"{findings.listed(view.candidates)} at each load. {title}."
        ),
        caption=(
            "From the timelines of the warm-up block's requests, each of which is in exactly one "
            "state at any time: blue is computing, orange orchestration (messages, hand-overs, "
            "text), grey waiting. Their sum is the request's end-to-end time / its tokens; n is "
            "the number of requests. Each panel has an axis of its own. The table below has all "
            "loads."
        ),
        columns=(*COLUMNS, "requests", "tokens", "ms_per_token", *(f"{g} ms" for g in used)),
        rows=[
            (
                *place(cell),
                spent.requests if (spent := cell.time_spent) else 0,
                spent and spent.tokens,
                spent and spent.ms_per_token,
                *(spent and spent.group_ms_per_token[group] for group in used),
            )
            for cell in cells
        ],
        figure=figure,
    )


def _cells(view: View) -> list[CellSummary]:
    """Of all loads, closed loops or not."""
    return [
        view.analysis.cell(pair, candidate, load.name)
        for pair in view.pairs
        for candidate in view.candidates
        for load in view.loads
    ]


def finding(view: View) -> str:
    """What takes most of a token's time, and whether that changes."""
    cells = [cell for cell in _cells(view) if cell.time_spent is not None]
    if not cells:
        return "No timelines were recorded"
    kinds = {_most(cell) for cell in cells}
    if len(kinds) == 1:
        (kind,) = kinds
        shares = [_kinds(cell)[kind] for cell in cells]
        return (
            f"{kind.capitalize()} takes the largest part of a token's time everywhere: "
            f"{_reach(min(shares), max(shares))}"
        )
    return findings.by_pair(view, lambda pair: _of_pair(view, [c for c in cells if c.pair == pair]))


def _of_pair(view: View, cells: Sequence[CellSummary]) -> str:
    parts = []
    for kind in dict.fromkeys(_most(cell) for cell in cells):
        mine = [cell for cell in cells if _most(cell) == kind]
        where = {
            name: _places(view, [cell for cell in mine if cell.candidate == name])
            for name in dict.fromkeys(cell.candidate for cell in mine)
        }
        if len(where) == len(view.candidates) > 1 and len(set(where.values())) == 1:
            parts.append(f"{kind} at {next(iter(where.values()))}")
        else:
            parts.append(f"{kind} ({', '.join(f'{name} at {at}' for name, at in where.items())})")
    return f"the largest part of a token's time is {findings.listed(parts)}"


def _places(view: View, cells: Sequence[CellSummary]) -> str:
    """Where these cells are: at what concurrency, or of loads that are no closed loops by name."""
    closed = [cell.shape.concurrency for cell in cells if cell.shape.concurrency is not None]
    labels = {load.name: load_label(load) for load in view.loads if load.concurrency is None}
    open_ = [labels[cell.load] for cell in cells if cell.load in labels]
    return findings.listed(
        [*([findings.span(closed, view.concurrencies)] if closed else []), *open_]
    )


def _most(cell: CellSummary) -> str:
    kinds = _kinds(cell)
    return max(kinds, key=kinds.__getitem__)


def _reach(low: float, high: float) -> str:
    texts = f"{low:.0%}", f"{high:.0%}"
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def _kinds(cell: CellSummary) -> dict[str, float]:
    """Shares of computing, orchestration and waiting."""
    found = {"computing": 0.0, "orchestration": 0.0, "waiting": 0.0}
    if cell.time_spent is not None:
        for group, share in cell.time_spent.groups.items():
            found[_kind(group)] += share
    return found


def _kind(group: str) -> str:
    if group.endswith(" compute"):
        return "computing"
    return "orchestration" if group in ORCHESTRATION_GROUPS else "waiting"


def _colours() -> dict[str, str]:
    shades = {"computing": _COMPUTE, "orchestration": _ORCHESTRATION, "waiting": _WAITING}
    found: dict[str, str] = {}
    for kind, colours in shades.items():
        groups = [group for group in GROUPS if _kind(group) == kind]
        found.update({g: colours[n % len(colours)] for n, g in enumerate(groups)})
    return found


def _bars(
    axes: Axes, cells: Sequence[CellSummary], groups: Sequence[str], colours: dict[str, str]
) -> None:
    starts = [0.0] * len(cells)
    for group in groups:
        parts = [c.time_spent.group_ms_per_token[group] if c.time_spent else 0.0 for c in cells]
        axes.barh(
            range(len(cells)),
            parts,
            0.68,
            starts,
            color=colours[group],
            edgecolor="white",
            linewidth=0.4,
        )
        starts = [start + part for start, part in zip(starts, parts, strict=True)]
    for y, (cell, total) in enumerate(zip(cells, starts, strict=True)):
        if cell.time_spent is None:
            text = "failed" if cell.problems else "no timelines"
        else:
            text = f"{total:.2f} ms\nn = {cell.time_spent.requests}"
        say_beside(axes, total, y, text)
    axes.set_xlim(0, 1.42 * max([*starts, 0.01]))
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(plain_numbers)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(visible=True, axis="x", color=GRID, linewidth=0.6)
