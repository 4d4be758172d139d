"""A sweep: block after block of every pair, until enough is known or the time is over.

The folder is the only memory: what it holds is not measured again, so a sweep that was cut off goes
on from there, and comes to the same decisions on the way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from bench.load.window import tokens_within
from bench.results.records import SCHEMA_VERSION, CellRecord, End, RequestRecord, Run
from bench.results.store import ResultsFolder
from bench.statistics import SequentialPlan
from bench.sweep.plan import Place, places, shortest_block
from bench.sweep.stopping import counts, is_known_well

Measured = tuple[CellRecord, list[RequestRecord]]
Measure = Callable[[Place], Measured]

ALL_DONE = "all blocks were measured"
KNOWN_WELL = "all ratios were known well enough"


class Progress(Protocol):
    """Is told how a sweep goes."""

    def known(self, cells: int) -> None:
        """So many cells were there already."""

    def cell(self, cell: CellRecord, left: int, seconds: float) -> None:
        """A cell was measured; ``left`` cells and at most ``seconds`` are to come."""

    def block(self, pair: str, block: int) -> None:
        """All cells of a block are there."""


@dataclass(slots=True)
class _Pair:
    """One pair on the way. ``rates``: tokens/s by candidate and load, by block, if they are looked
    at; ``blocks``: complete ones that count; ``longest``: seconds of the longest block so far;
    ``alpha``: what its intervals may spend, known when it is over."""

    number: int
    rates: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    blocks: int = 0
    longest: float = 0.0
    alpha: float = 0.0
    stopped: str = ALL_DONE


class Sweep:
    """Measures what a folder lacks of its run, and writes it there.

    ``open_pair``: a context in which the cells of the pair of that number can be measured; it is
    entered when there is something to measure. ``budget``: seconds for measuring, those of the
    cells that are there included.
    """

    def __init__(
        self,
        folder: ResultsFolder,
        run: Run,
        open_pair: Callable[[int], AbstractContextManager[Measure]],
        progress: Progress,
        budget: float,
    ) -> None:
        self._folder = folder
        self._run = run
        self._open_pair = open_pair
        self._progress = progress
        self._budget = budget
        self._plan = SequentialPlan(run.blocks)
        self._cells: dict[str, CellRecord] = {}
        self._spent = 0.0

    def run(self) -> End:
        """Measures, and says in the folder why it stopped. Cells that fail are no error.

        Raises ResultsError if the folder cannot be read or written, and what ``open_pair`` raises.
        """
        self._cells = {cell.id: cell for cell in self._folder.resume()}
        self._forget_unfinished_turns()
        self._progress.known(len(self._cells))
        pairs = [self._measure_pair(number) for number in range(len(self._run.pairs))]
        fewest = min(pairs, key=lambda pair: pair.blocks)
        end = End(
            schema_version=SCHEMA_VERSION,
            blocks=fewest.blocks,
            looked=self._run.precision is not None,
            alpha=min(pair.alpha for pair in pairs),
            stopped=fewest.stopped,
        )
        self._folder.end(end)
        return end

    def _forget_unfinished_turns(self) -> None:
        """Candidates are compared within a block and load. Those that a run which was cut off had
        measured are measured again with the others: another hour may be slower."""
        run = self._run
        turns: dict[tuple[int, int, int], list[str]] = {}
        for number in range(len(run.pairs)):
            for block in range(run.blocks + 1):
                for place in places(run, number, block):
                    turns.setdefault((number, block, place.load), []).append(place.id)
        unfinished = {
            each
            for ids in turns.values()
            if not all(each in self._cells for each in ids)
            for each in ids
            if each in self._cells
        }
        if unfinished:
            self._cells = {key: cell for key, cell in self._cells.items() if key not in unfinished}
            self._folder.keep(self._cells)

    def _measure_pair(self, number: int) -> _Pair:
        """All blocks of a pair. The time that is left is shared with the pairs to come."""
        pair = _Pair(number)
        share = (self._budget - self._spent) / (len(self._run.pairs) - number)
        clock = _Clock(sum(cell.took for cell in self._cells_of(number)))
        with ExitStack() as stack:
            measure: Measure | None = None
            for block in range(self._run.blocks + 1):
                missing = [p for p in places(self._run, number, block) if p.id not in self._cells]
                if self._is_over(pair, len(missing), share - clock.seconds):
                    pair.stopped = f"the budget of {self._budget:g} s was spent"
                    break
                for place in missing:
                    measure = measure or stack.enter_context(self._open_pair(number))
                    self._measure_cell(measure, place, share - clock.seconds)
                if self._finish_block(pair, block):
                    pair.stopped = KNOWN_WELL
                    break
        if pair.stopped == KNOWN_WELL:
            pair.alpha = self._plan.alpha_at(pair.blocks)
        else:
            looked = self._run.precision is not None
            pair.alpha = self._plan.alpha_at_end(pair.blocks, looked)
        self._spent += clock.seconds
        return pair

    def _is_over(self, pair: _Pair, missing: int, seconds_left: float) -> bool:
        """Whether a block is not to begin. One that was begun is finished, and the one after the
        last is not begun if a later pair was already: then this one was over."""
        run = self._run
        if missing < len(run.candidates) * len(run.loads):
            return False
        later = range(pair.number + 1, len(run.pairs))
        needed = max(pair.longest, shortest_block(run))
        return needed > seconds_left or any(any(self._cells_of(n)) for n in later)

    def _measure_cell(self, measure: Measure, place: Place, seconds_left: float) -> None:
        cell, requests = measure(place)
        self._folder.add(cell, requests)
        self._cells[cell.id] = cell
        each = [cell.took for cell in self._cells_of(place.pair)]
        run = self._run
        blocks = (len(run.pairs) - place.pair) * (run.blocks + 1)
        left = blocks * len(run.loads) * len(run.candidates) - len(each)
        seconds = min(left * sum(each) / len(each), max(0.0, seconds_left))
        self._progress.cell(cell, left, seconds)

    def _finish_block(self, pair: _Pair, block: int) -> bool:
        """Takes in a block that is complete; whether the pair is known well enough with it."""
        run = self._run
        cells = [self._cells[place.id] for place in places(run, pair.number, block)]
        pair.longest = max(pair.longest, sum(cell.took for cell in cells))
        pair.blocks = block
        self._progress.block(run.pairs[pair.number].name, block)
        if run.precision is None:
            return False
        for cell in filter(counts, cells):
            tokens = tokens_within(self._folder.requests(cell), cell.window_ns)
            by_block = pair.rates.setdefault((cell.candidate, cell.load), {})
            by_block[block] = tokens * 1e9 / cell.window_ns
        if block not in self._plan.looks[:-1]:
            return False
        return is_known_well(run, pair.rates, run.precision, self._plan.alpha_at(block))

    def _cells_of(self, pair: int) -> Iterable[CellRecord]:
        return (cell for cell in self._cells.values() if cell.id.startswith(f"p{pair}-"))


class _Clock:
    """Seconds since it was made, and those before."""

    def __init__(self, before: float) -> None:
        self._began = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
