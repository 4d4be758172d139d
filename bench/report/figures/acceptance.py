"""Acceptance of draft tokens: against concurrency, and by position in the draft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bench.report.figures import findings
from bench.report.figures.labels import End
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
from bench.report.figures.style import new_figure
from bench.report.figures.view import View
from bench.report.summaries import CellSummary, Estimate
from bench.statistics import MIN_BLOCKS

SAME = 0.02
"""Shares that differ by less are called the same."""


def draw(view: View) -> Picture:
    """A row for each pair."""
    title = findings.by_pair(view, lambda pair: finding(view, pair))
    figure = new_figure(title, view.footer, 0.8 + 3.2 * len(view.pairs))
    last = view.closed[-1]
    named = []
    for row, pair in zip(panels(figure, len(view.pairs), 2), view.pairs, strict=True):
        of = f", {pair}" if len(view.pairs) > 1 else ""
        named.append((row[0], draw_lines(row[0], view, pair, rate)))
        row[0].set_title(f"of all drafted tokens{of}", loc="left")
        row[0].set_ylabel("acceptance rate: accepted / drafted")
        named.append((row[1], _by_position(row[1], view, pair, last.name)))
        row[1].set_title(f"by position in the draft, C = {last.concurrency}{of}", loc="left")
        row[1].set_xlabel("position in the draft")
        row[1].set_ylabel("share of cycles with it accepted")
        for axes in row:
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    name_lines(figure, named)
    cells = [
        cell
        for pair in view.pairs
        for candidate in view.candidates
        for _, cell in view.cells(pair, candidate)
    ]
    positions = max((len(cell.speculation.per_position) for cell in cells), default=0)
    return Picture(
        name="acceptance_rate",
        title=title,
        alt=(
            "Left: lines of the acceptance rate from 0 to 100 % against the number of clients at "
            f"a time, one for each of {findings.listed(view.candidates)}. Right: the share of "
            "cycles in which the token at each position of the draft was accepted. "
            f"{title}."
        ),
        caption=(
            "Accepted draft tokens / drafted ones, over all requests that were open in the "
            "windows. The verifier's own token of a cycle counts in neither. Where the draft is "
            f"longer, later positions come in, and the rate falls. {HOW_TO_READ}"
        ),
        columns=(
            *COLUMNS,
            "blocks",
            "drafted",
            "accepted",
            *estimate_columns("acceptance_rate"),
            *(f"accepted_at_{n}" for n in range(1, positions + 1)),
        ),
        rows=[
            (
                *place(cell),
                cell.blocks,
                cell.speculation.drafted,
                cell.speculation.accepted,
                *estimate_values(rate(cell)),
                *(
                    cell.speculation.per_position[n]
                    if n < len(cell.speculation.per_position)
                    else None
                    for n in range(positions)
                ),
            )
            for cell in cells
        ],
        figure=figure,
    )


def rate(cell: CellSummary) -> Estimate | None:
    """Accepted / drafted."""
    return cell.speculation.acceptance_rate


def finding(view: View, pair: str) -> str:
    """Whether topology and load change what is accepted, by sums over the other of the two."""
    cells = [c for name in view.candidates for _, c in view.cells(pair, name)]
    by_name = {
        name: _together([cell for cell in cells if cell.candidate == name])
        for name in view.candidates
    }
    by_load = {
        f"C = {load.concurrency}": _together([c for c in cells if c.load == load.name])
        for load in view.closed
    }
    over_all = _together(cells)
    if over_all is None:
        return "nothing was drafted"
    parts = []
    if _spread(by_name) >= SAME and any(_apart(here) for here in _grouped(cells, "load")):
        parts.append(f"with the topology {_reach(by_name)}")
    if _spread(by_load) >= SAME and any(_apart(here) for here in _grouped(cells, "candidate")):
        parts.append(f"with the concurrency {_reach(by_load)}")
    if parts:
        return f"the share of draft tokens accepted changes {' and '.join(parts)}"
    return (
        f"{over_all:.1%} of the draft tokens are accepted; no topology and no concurrency is shown "
        "to change that"
    )


def _spread(shares: Mapping[str, float | None]) -> float:
    found = [share for share in shares.values() if share is not None]
    return max(found) - min(found)


def _reach(shares: Mapping[str, float | None]) -> str:
    found = {name: share for name, share in shares.items() if share is not None}
    low, high = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    return f"from {found[low]:.1%} ({low}) to {found[high]:.1%} ({high})"


def _grouped(cells: Sequence[CellSummary], by: str) -> list[list[CellSummary]]:
    found: dict[str, list[CellSummary]] = {}
    for cell in cells:
        found.setdefault(getattr(cell, by), []).append(cell)
    return list(found.values())


def _apart(cells: Sequence[CellSummary]) -> bool:
    """Whether two of the intervals have no value in common, of cells with enough blocks."""
    intervals = [
        (estimate.low, estimate.high)
        for cell in cells
        if cell.blocks >= MIN_BLOCKS
        and (estimate := rate(cell)) is not None
        and estimate.low is not None
        and estimate.high is not None
    ]
    return bool(intervals) and max(low for low, _ in intervals) > min(high for _, high in intervals)


def _together(cells: Sequence[CellSummary]) -> float | None:
    drafted = sum(cell.speculation.drafted for cell in cells)
    return sum(cell.speculation.accepted for cell in cells) / drafted if drafted else None


def _by_position(axes: Axes, view: View, pair: str, load: str) -> list[End]:
    ends = []
    for turn, name in enumerate(view.candidates):
        shares = view.analysis.cell(pair, name, load).speculation.per_position
        if shares:
            look = view.looks[name]
            aside = 0.03 * (turn - (len(view.candidates) - 1) / 2)
            axes.plot([n + aside for n in range(1, len(shares) + 1)], shares, **look.line)
            ends.append(End(len(shares), shares[-1], name, look.text))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ends
