"""The pictures of the laboratory; each says that it is emulated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.emulation.findings import Rows, residual
from bench.emulation.valley import REFERENCE, Place, Valley, clients
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
_NOT_SHOWN = "#e4e4e4"


def valley_map(valley: Valley) -> Picture:
    """Expected and found shares of the reference's rate, over compute per step x concurrency; what
    is not shown to be a loss or a gain is grey."""
    mine, title = valley.places, valley.title
    footer = f"{LABEL} Grey: not shown." if valley.has_intervals else f"{LABEL} No intervals."
    steps = sorted({place.step_ms for place in mine})
    clients = sorted({place.concurrency for place in mine})
    figure = new_figure(title, footer, 1.6 + 0.42 * len(steps))
    panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    for axes, which in zip(panels, ("expected", "found"), strict=True):
        grid = np.full((len(steps), len(clients)), np.nan)
        axes.set_facecolor(_NOT_SHOWN)
        for place in mine:
            x, y = clients.index(place.concurrency), steps.index(place.step_ms)
            value = place.expected if which == "expected" else place.found
            text = f"{value:.2f}"
            if which == "expected" or place.verdict != "not shown":
                grid[y, x] = value
            if which == "found" and place.low is not None:
                text += f"\n{place.low:.2f}–{place.high:.2f}"
            dark = np.isfinite(grid[y, x]) and abs(value - 1) > _LIGHT
            colour = "white" if dark else INK
            axes.text(x, y, text, ha="center", va="center", fontsize=SMALL, color=colour)
        axes.imshow(grid, cmap="RdBu", vmin=0.4, vmax=1.6, aspect="auto", origin="lower")
        axes.set_xticks(range(len(clients)), [str(c) for c in clients])
        axes.set_yticks(range(len(steps)), [f"{s:g}" for s in steps])
        axes.set_title(f"{which}: {valley.setup} ÷ {REFERENCE}", loc="left")
        axes.set_xlabel("clients at a time (concurrency)")
    panels[0].set_ylabel("verifier's step for one row, ms")
    columns = tuple(field.name for field in dataclasses.fields(Place))
    return Picture(
        name=f"emulated_valley_{valley.setup}",
        title=title,
        alt=f"Two tables of shares by step and clients. {title}.",
        caption="Output tokens/s of a topology over those of one process, with intervals of what "
        "was found that hold at once. Below 1 its handoffs cost more than they bring; grey where "
        "no difference is shown.",
        columns=(*columns, "residual", "verdict"),
        rows=[(*dataclasses.astuple(place), place.residual, place.verdict) for place in mine],
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
    numbers = (*columns, "blocks", "expected", "found", "low", "high", "residual")
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
    name: str,
    title: str,
    rows: Rows,
    by: str,
    x: str,
    labels: tuple[str, str],
    y: str,
    dashed: str = "expected by the law",
) -> Picture | None:
    """Lines of what was found, and ``dashed`` ones of what was expected, one pair for each
    ``by``."""
    if not rows:
        return None
    figure = new_figure(title, f"{LABEL} Dashed: {dashed}.", 3.6)
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
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    columns = tuple(rows[0])
    return Picture(
        name=name,
        title=title,
        alt=f"Lines against {labels[0]}. {title}.",
        caption=f"Solid: found; dashed: {dashed}.",
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
        f"The emulation is off by {abs(worst['ratio'] - 1):.1%} at most: {worst['setup']} with "
        f"{clients(worst['concurrency'])}"
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
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
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
