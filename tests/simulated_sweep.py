"""Runs and measurements for tests of sweeps, without a server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from bench.results.records import (
    SCHEMA_VERSION,
    Candidate,
    CellRecord,
    Load,
    Objective,
    Pair,
    RequestRecord,
    Run,
)
from bench.sweep.plan import Place
from bench.sweep.sweep import Measure, Measured

ONE, TWO = Candidate(name="one", topology="unified"), Candidate(name="two", topology="pd")
TWIN = Candidate(name="one (again)", topology="unified", twin_of="one")


def made_run(**changes: Any) -> Run:
    """Two candidates and a twin under two loads, two blocks."""
    run = Run(
        schema_version=SCHEMA_VERSION,
        started="2026-01-01T00:00:00+0000",
        command=["pdv-bench", "sweep"],
        seed=0,
        reference="one",
        candidates=[ONE, TWO, TWIN],
        pairs=[Pair(name="shipped")],
        loads=[Load(name=f"C={n}", kind="closed", concurrency=n) for n in (1, 8)],
        blocks=2,
        window=1.0,
        ramp=0.0,
        budget=1000.0,
        precision=None,
        workload={},
        objective=Objective(),
        environment={"versions": {"torch": "2"}, "source": "x", "machine": {"cores": 2}},
    )
    return msgspec.structs.replace(run, **changes)


def request(tokens: int) -> RequestRecord:
    """One whose tokens all arrive at the window's start."""
    return RequestRecord(
        client=0,
        prompt=0,
        prompt_tokens=1,
        max_tokens=tokens,
        seed=0,
        arrival_ns=-1,
        sent_ns=-1,
        ended_ns=1,
        events=[(0, tokens)],
        ids=[],
        drafted=[],
        finish="length",
    )


class Simulated:
    """Measures at once: rates that differ by ``noise`` from cell to cell, and cells that say they
    took ``took`` seconds.

    ``measured``: the ids of the cells so far; ``opened``: the numbers of the pairs that were
    begun. ``failing``: ids of cells that fail; ``noisy``: numbers of candidates whose rates differ
    by far more. ``before`` is called before each cell.
    """

    def __init__(self, run: Run, noise: float = 0.01, took: float = 0.0) -> None:
        self.measured: list[str] = []
        self.opened: list[int] = []
        self.failing: set[str] = set()
        self.noisy: set[int] = set()
        self.before: Callable[[Place], None] = lambda place: None
        self._run = run
        self._noise = noise
        self._took = took

    @contextlib.contextmanager
    def open_pair(self, number: int) -> Iterator[Measure]:
        """Of :class:`bench.sweep.sweep.Sweep`."""
        self.opened.append(number)
        yield self.measure

    def measure(self, place: Place) -> Measured:
        """One cell."""
        self.before(place)
        self.measured.append(place.id)
        run = self._run
        draw = np.random.default_rng([place.pair, place.block, place.load, place.candidate])
        noise = 0.5 if place.candidate in self.noisy else self._noise
        tokens = int(1e6 * np.exp(draw.normal(0, noise)))
        cell = CellRecord(
            schema_version=SCHEMA_VERSION,
            id=place.id,
            pair=run.pairs[place.pair].name,
            candidate=run.candidates[place.candidate].name,
            load=run.loads[place.load].name,
            block=place.block,
            order=place.order,
            followed=not place.block,
            started=run.started,
            window_ns=10**9,
            failed="the server has ended" if place.id in self.failing else None,
            took=self._took,
        )
        return cell, [] if cell.failed else [request(tokens)]


class Told:
    """What a sweep told of its progress."""

    def __init__(self) -> None:
        self.known_cells = -1
        self.left: list[tuple[int, float]] = []
        self.blocks: list[tuple[str, int]] = []

    def known(self, cells: int) -> None:
        """Of :class:`bench.sweep.sweep.Progress`, as all others."""
        self.known_cells = cells

    def cell(self, cell: CellRecord, left: int, seconds: float) -> None:
        self.left.append((left, seconds))

    def block(self, pair: str, block: int) -> None:
        self.blocks.append((pair, block))
