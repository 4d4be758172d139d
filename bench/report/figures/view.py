"""What the pictures draw from: an analysis, the looks of its candidates, and its closed loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.report.facts import commit, machine
from bench.report.figures.style import Look, looks
from bench.report.recommendation import load_text
from bench.report.summaries import Analysis, CellSummary, Estimate
from bench.results.records import Load, Run

Value = Callable[[CellSummary], Estimate | None]
"""What of a cell a picture shows."""


@dataclass(frozen=True)
class View:
    """An analysis as the pictures see it."""

    analysis: Analysis

    @cached_property
    def looks(self) -> dict[str, Look]:
        """By candidate."""
        return looks(self.analysis.run.candidates)

    @cached_property
    def candidates(self) -> tuple[str, ...]:
        """Those that are compared: all but twins, which are there for the noise."""
        return tuple(c.name for c in self.analysis.run.candidates if c.twin_of is None)

    @cached_property
    def pairs(self) -> tuple[str, ...]:
        """Model pairs."""
        return tuple(pair.name for pair in self.analysis.run.pairs)

    @cached_property
    def loads(self) -> tuple[Load, ...]:
        """All loads, the closed loops first and by their number of clients."""
        others = tuple(load for load in self.analysis.run.loads if load.kind != "closed")
        return (*self.closed, *others)

    @cached_property
    def closed(self) -> tuple[Load, ...]:
        """The closed loops, by their number of clients; only they have a place on an axis of
        concurrency."""
        found = [load for load in self.analysis.run.loads if load.kind == "closed"]
        return tuple(sorted(found, key=lambda load: load.concurrency or 0))

    @property
    def concurrencies(self) -> tuple[int, ...]:
        """Of the closed loops."""
        return tuple(load.concurrency or 0 for load in self.closed)

    def cells(self, pair: str, candidate: str) -> list[tuple[int, CellSummary]]:
        """The closed loops' cells, each with its number of clients."""
        return [
            (load.concurrency or 0, self.analysis.cell(pair, candidate, load.name))
            for load in self.closed
        ]

    def counted(self, value: Callable[[CellSummary], object]) -> list[CellSummary]:
        """The closed loops' cells of all that are compared in which there is such a value."""
        return [
            cell
            for pair in self.pairs
            for candidate in self.candidates
            for _, cell in self.cells(pair, candidate)
            if value(cell) is not None
        ]

    @cached_property
    def footer(self) -> str:
        """Commit, machine, models, how many blocks, and when."""
        return footer(self.analysis.run, self.analysis.blocks)

    def more(self, text: str) -> str:
        """The footer with something besides."""
        return f"{self.footer} · {text}"


def footer(run: Run, blocks: int) -> str:
    """What stands below a picture of a run."""
    facts = (
        f"commit {commit(run.environment)}",
        machine(run.environment),
        f"{'pair' if len(run.pairs) == 1 else 'pairs'} {', '.join(p.name for p in run.pairs)}",
        f"n = {blocks} {'block' if blocks == 1 else 'blocks'} of {run.window:g} s",
        run.started[:10],
    )
    return " · ".join(facts)


def load_label(load: Load) -> str:
    """As short as axes and titles want it."""
    return f"C = {load.concurrency}" if load.kind == "closed" else load_text(load)


def shown_loads(loads: Sequence[Load], most: int) -> tuple[Load, ...]:
    """At most so many of the loads, the first and the last among them, evenly spread."""
    if len(loads) <= most:
        return tuple(loads)
    steps = (len(loads) - 1) / (most - 1)
    return tuple(loads[round(place * steps)] for place in range(most))
