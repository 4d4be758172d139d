"""Tokens/s against concurrency for us and each peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.peers.summary import CellSummary, Summary, Versus, is_ours
from bench.peers.tables import label, threads
from bench.report.figures.picture import Drawn, Picture
from bench.report.figures.style import (
    Look,
    concurrency_axis,
    legend_below,
    looks,
    new_figure,
    plain_numbers,
    settings,
)
from bench.results.records import Candidate

NAME = "peers"
LEGEND_COLUMNS = 4
"""The longest of the engines' names fit."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (5, 1, 1, 1)))
COLUMNS = ("pair", "workload", "concurrency", "engine", "tokens_per_s", "low", "high")


def draw(summary: Summary, folder: Path) -> Drawn:
    """``peers.png``, ``.svg`` and ``.csv`` in the folder. Raises OSError."""
    with settings():
        return picture(summary).write(folder)


def picture(summary: Summary) -> Picture:
    """A row for each pair, a column for each workload."""
    run = summary.run
    engines = summary.engines
    look = _looks(engines)
    title = finding(summary)
    footer = (
        "Output tokens/s, prefill included; geometric mean and 95 % interval over interleaved "
        f"rounds; float32, {threads(run)} for every engine, greedy, no prefix caching. "
        "Grey: the bound of the machine."
    )
    rows = -(-len(engines) // LEGEND_COLUMNS)
    figure = new_figure(title, footer, 1.2 + 2.9 * len(run.pairs), legend_rows=rows)
    panels = figure.subplots(len(run.pairs), len(run.workloads), squeeze=False)
    numbers: list[tuple[object, ...]] = []
    handles: dict[str, Any] = {}
    for line, pair in zip(panels, run.pairs, strict=True):
        for axes, load in zip(line, run.workloads, strict=True):
            cells = [summary.cell(pair.name, load.name, c) for c in run.concurrencies]
            known = [cell for cell in cells if cell is not None]
            axes.set_title(f"{pair.name}, {load.name} tokens", loc="left")
            concurrency_axis(axes, run.concurrencies)
            axes.set_ylabel("tokens/s")
            axes.grid(axis="y")
            bounds = [(c.concurrency, c.bound.total) for c in known if c.bound is not None]
            if bounds:
                axes.plot(*zip(*bounds, strict=True), color="#999999", linewidth=1.0)
            for engine in engines:
                points = [(c.concurrency, e) for c in known if (e := c.rate(engine))]
                if not points:
                    continue
                places = [place for place, _ in points]
                values = [found.value for _, found in points]
                drawn = axes.plot(
                    places,
                    values,
                    **{**look[engine].line, "linewidth": 2.2 if is_ours(engine) else 1.2},
                )
                handles.setdefault(engine, drawn[0])
                for place, found in points:
                    if found.low is not None and found.high is not None:
                        axes.vlines(place, found.low, found.high, color=look[engine].colour)
                    numbers.append(
                        (pair.name, load.name, place, engine, found.value, found.low, found.high)
                    )
            top = max([*(value for _, value in bounds), *_values(known)], default=1.0)
            axes.set_ylim(0, top * 1.05)
            axes.yaxis.set_major_formatter(plain_numbers)
    labels = [label(name) for name in handles]
    legend_below(figure, footer, list(handles.values()), labels, LEGEND_COLUMNS)
    return Picture(
        NAME,
        title,
        "Lines of tokens per second against concurrency, one for each engine.",
        footer,
        COLUMNS,
        numbers,
        figure,
    )


def _looks(engines: Sequence[str]) -> dict[str, Look]:
    """A peer has one colour and marker; its modes are told apart by the dashes."""
    peers = list(dict.fromkeys(engine.partition(":")[0] for engine in engines))
    of_peer = looks([Candidate(name=peer, topology=peer) for peer in peers])
    found: dict[str, Look] = {}
    for engine in engines:
        peer = engine.partition(":")[0]
        turn = sum(other.partition(":")[0] == peer for other in found)
        found[engine] = replace(of_peer[peer], dash=DASHES[turn % len(DASHES)])
    return found


def _values(cells: Sequence[CellSummary]) -> list[float]:
    return [rate for cell in cells for rates in cell.rates.values() for rate in rates.values()]


def finding(summary: Summary) -> str:
    """In how many cells our best mode is shown to be ahead of, or behind, the best peer."""
    found = [cell.versus(cell.best_of_ours, cell.best_of_theirs) for cell in summary.cells]
    versus = [one for one in found if one is not None]
    if not versus:
        return "Tokens/s against concurrency"
    ahead = sum(_low(one) > 1 for one in versus)
    behind = sum(_high(one) < 1 for one in versus)
    span = f"{min(one.value for one in versus):.2f} to {max(one.value for one in versus):.2f}"
    return (
        f"Our best mode reaches {span} × the best peer's tokens/s: ahead in {ahead}, behind in "
        f"{behind} of {len(versus)} cells, with the rest undecided"
    )


def _low(one: Versus) -> float:
    return 0.0 if one.ratio is None else one.ratio.low


def _high(one: Versus) -> float:
    return float("inf") if one.ratio is None else one.ratio.high
