"""The pictures of the laboratory; each says that it is emulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.emulation.findings import REFERENCE, Rows, deepest, residual
from bench.report.figures.picture import Picture
from bench.report.figures.style import (
    INK,
    MUTED,
    SMALL,
    concurrency_axis,
    new_figure,
    plain_numbers,
)

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LABEL = "EMULATED: steps take the time that a cost table says; all else is real."
_LIGHT = 0.45


def valley_map(rows: Rows, setup: str) -> Picture | None:
    """Expected and found shares of the reference's rate, over compute per step x concurrency."""
    mine = [row for row in rows if row["setup"] == setup]
    if not mine:
        return None
    expected, found = deepest(mine, setup, "expected"), deepest(mine, setup, "found")
    if expected is None or found is None:
        return None
    title = (
        f"Emulated: {setup} loses most at steps of {found.step_ms:g} ms and {found.concurrency} "
        f"clients, {1 - found.ratio:.0%} of {REFERENCE}'s rate; the law said "
        f"{1 - expected.ratio:.0%} at {expected.step_ms:g} ms and {expected.concurrency}"
    )
    figure = new_figure(title, LABEL, 3.6)
    panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    steps = sorted({row["step_ms"] for row in mine})
    clients = sorted({row["concurrency"] for row in mine})
    for axes, which in zip(panels, ("expected", "found"), strict=True):
        grid = np.full((len(steps), len(clients)), np.nan)
        for row in mine:
            grid[steps.index(row["step_ms"]), clients.index(row["concurrency"])] = row[which]
        axes.imshow(grid, cmap="RdBu", vmin=0.4, vmax=1.6, aspect="auto", origin="lower")
        for (y, x), value in np.ndenumerate(grid):
            if np.isfinite(value):
                dark = abs(value - 1) > _LIGHT
                text = f"{value:.2f}"
                colour = "white" if dark else INK
                axes.text(x, y, text, ha="center", va="center", fontsize=SMALL, color=colour)
        axes.set_xticks(range(len(clients)), [str(c) for c in clients])
        axes.set_yticks(range(len(steps)), [f"{s:g}" for s in steps])
        axes.set_title(f"{which}: {setup} ÷ {REFERENCE}", loc="left")
        axes.set_xlabel("clients at a time (concurrency)")
    panels[0].set_ylabel("verifier's step for one row, ms")
    return Picture(
        name=f"emulated_valley_{setup}",
        title=title,
        alt=f"Two tables of shares by step and clients. {title}.",
        caption="Output tokens/s of a topology over those of one process. Below 1 its handoffs "
        "cost more than they bring.",
        columns=("setup", "step_ms", "concurrency", "expected", "found"),
        rows=[
            tuple(row[name] for name in ("setup", "step_ms", "concurrency", "expected", "found"))
            for row in mine
        ],
        figure=figure,
    )


def law_picture(rows: Rows) -> Picture | None:
    """What was found over what was expected, all trials."""
    off = residual(rows)
    if off is None:
        return None
    title = f"Emulated: half of {len(rows)} rates lie within {off:.0%} of what the law said before"
    figure = new_figure(title, LABEL, 3.8)
    axes = figure.subplots()
    for number, study in enumerate(dict.fromkeys(row["study"] for row in rows)):
        mine = [row for row in rows if row["study"] == study]
        axes.plot(
            [row["expected"] for row in mine],
            [row["residual"] * 100 for row in mine],
            MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            label=study,
            markersize=4.5,
        )
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("expected output tokens/s")
    axes.set_ylabel("found ÷ expected − 1, %")
    axes.legend(frameon=False)
    columns = ("study", "table", "setup", "k", "concurrency", "step_ms", "delay_us")
    numbers = (*columns, "expected", "found", "residual")
    return Picture(
        name="emulated_law",
        title=title,
        alt=f"Points of residuals against expected rates. {title}.",
        caption="Rates were written down by the law before they were measured.",
        columns=numbers,
        rows=[tuple(row[name] for name in numbers) for row in rows],
        figure=figure,
    )


def lines_picture(
    name: str, title: str, rows: Rows, by: str, x: str, labels: tuple[str, str], y: str
) -> Picture | None:
    """Lines of what was found, and dashed ones of what was expected, one pair for each ``by``."""
    if not rows:
        return None
    figure = new_figure(title, LABEL + " Dashed: expected by the law.", 3.6)
    axes = figure.subplots()
    for number, value in enumerate(dict.fromkeys(row[by] for row in rows)):
        mine = sorted((row for row in rows if row[by] == value), key=lambda row: float(row[x]))
        colour = COLOURS[number % len(COLOURS)]
        places = [row[x] for row in mine]
        axes.plot(
            places,
            [row[f"found_{y}" if f"found_{y}" in row else "found"] for row in mine],
            marker=MARKERS[number % len(MARKERS)],
            color=colour,
            label=f"{value}",
        )
        axes.plot(
            places,
            [row[f"expected_{y}" if f"expected_{y}" in row else "expected"] for row in mine],
            "--",
            color=colour,
        )
    _axis(axes, x, [row[x] for row in rows])
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(frameon=False)
    columns = tuple(rows[0])
    return Picture(
        name=name,
        title=title,
        alt=f"Lines against {labels[0]}. {title}.",
        caption="Solid: found; dashed: expected by the law.",
        columns=columns,
        rows=[tuple(row[column] for column in columns) for row in rows],
        figure=figure,
    )


def validation_picture(rows: Rows) -> Picture | None:
    """Emulated over measured rates."""
    if not rows:
        return None
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    title = (
        f"The emulation is off by {abs(worst['ratio'] - 1):.0%} at most: {worst['setup']} with "
        f"{worst['concurrency']} clients"
    )
    footer = "Emulated servers with a calibrated table beside real ones on the same machine."
    figure: Figure = new_figure(title, footer, 3.4)
    axes = figure.subplots()
    for number, setup in enumerate(dict.fromkeys(row["setup"] for row in rows)):
        mine = sorted((r for r in rows if r["setup"] == setup), key=lambda r: r["concurrency"])
        axes.errorbar(
            [row["concurrency"] * 1.03 ** (number - 1) for row in mine],
            [row["ratio"] for row in mine],
            yerr=_reach(mine),
            marker=MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            label=setup,
        )
    axes.axhspan(0.9, 1.1, color="#eeeeee", zorder=0)
    concurrency_axis(axes, [row["concurrency"] for row in rows])
    axes.set_ylabel("emulated ÷ measured tokens/s")
    axes.legend(frameon=False)
    columns = tuple(rows[0])
    return Picture(
        name="emulated_validation",
        title=title,
        alt=f"Ratios against clients, one line for each topology. {title}.",
        caption="The band is 10 %.",
        columns=columns,
        rows=[tuple(row[column] for column in columns) for row in rows],
        figure=figure,
    )


def _reach(rows: Rows) -> Any:
    if any(row["low"] is None for row in rows):
        return None
    return [
        [row["ratio"] - row["low"] for row in rows],
        [row["high"] - row["ratio"] for row in rows],
    ]


def _axis(axes: Axes, x: str, places: Sequence[float]) -> None:
    if x == "concurrency":
        concurrency_axis(axes, [int(place) for place in places])
        return
    axes.set_xscale("symlog", linthresh=100)
    axes.xaxis.set_major_formatter(plain_numbers)
