"""What a step costs by the size of its batch, learnt while it runs.

A table with a cell for each batch size (in quarters of an octave), query length (in halves of a row
per sequence) and context (in octaves). A cell holds a smoothed mean of its steps' times. What is
not measured is not guessed but bounded from below: a step costs no less than one with fewer rows
and less context, and rows of a larger step are never dearer than those of a smaller one, since
both read the weights once. So a length that could pay is tried, and one that cannot is not.

A machine that slows down slows all its steps: a factor common to all cells follows within some
steps, so that the cell in use does not look dear beside those that were measured before. What stays
goes over into the cell in use, slowly.

Whatever disturbs a measurement makes it longer. So what a cell has from a rehearsal, which a moment
of other load can have spoilt, gives way to the first shorter step of it that is served, and
:meth:`StepCosts.least` says how little a step could cost if only cells in which many were served
are believed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BATCHES_PER_OCTAVE = 4
WIDTHS_PER_ROW = 2
SHORT_CONTEXT = 256
"""Mean tokens of a sequence up to which contexts are alike."""

KNOWN = 2
"""Steps after which a cell counts as measured."""
MAX_STEPS = 20
"""Steps of a cell that count; older ones are forgotten."""
STALE_CYCLES = 1000
"""Steps after which a cell that was not used is half as sure of itself."""
SURE = 2
"""Steps served, the last of them within :data:`STALE_CYCLES`, from which on a cell is sure."""
FOLLOWED = 16
"""Steps after which the drift is that of the hour, so that the rest is a cell's own."""
LEAST_EVIDENCE = 0.5
"""Steps as which one that was measured counts at least, however long ago that was."""
DRIFT_RATE = 0.15
DRIFT_LEAK = 0.001
"""So little that in hours when all is slow the cell in use seems no dearer than the others."""
MAX_SURPRISE = 0.4
"""Logarithm of the largest ratio by which one step can say that costs have changed."""
ELASTICITY = 0.5
"""Within a cell a step of twice the rows is taken to cost 2 ** ELASTICITY times as much."""
BOUND_SLACK = 0.95
GATHER_INTERVAL = 8
"""Steps after which what bounds rest on is brought up to date."""
NOISE_RATE = 0.05
FIRST_NOISE = 0.03
MIN_NOISE = 0.01
DOUBT = 1.5
"""Standard errors of a cell's mean by which the true cost may well be lower."""


@dataclass(slots=True)
class _Cell:
    """``log_ns``: of the time, without the drift. ``rows``, ``context``: means of its steps.
    ``rehearsed``: whether it had a time before its first step. ``served``: its steps, or if it was
    rehearsed those since the drift is that of the hour."""

    log_ns: float
    rows: float
    context: float
    steps: int
    last: int
    served: int
    rehearsed: bool


class StepCosts:
    """Times of one stage's steps."""

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int, int], _Cell] = {}
        self._drift = 0.0
        self._steps = 0
        self._noise = FIRST_NOISE
        self._gathered: Floats = np.zeros((3, 0))
        self._gathered_at = 0

    def __len__(self) -> int:
        return len(self._cells)

    def add(self, sequences: int, rows: int, context: int, nanoseconds: int) -> None:
        """A step over ``rows`` tokens of ``sequences`` sequences that have ``context`` tokens
        together."""
        self._steps += 1
        log_ns = math.log(max(1, nanoseconds)) - self._drift
        key = _key(sequences, rows, context)
        cell = self._cells.get(key)
        if cell is None:
            self._cells[key] = _Cell(log_ns, rows, context, 1, self._steps, 1, False)
            return
        surprise = log_ns - cell.log_ns - ELASTICITY * math.log(rows / cell.rows)
        remembered = min(cell.steps, max(KNOWN, round(self._evidence(cell))))
        cell.steps = min(MAX_STEPS, remembered + 1)
        cell.served += not cell.rehearsed or self._steps > FOLLOWED
        cell.last = self._steps
        rate = 1 / cell.steps
        cell.rows += rate * (rows - cell.rows)
        cell.context += rate * (context - cell.context)
        if cell.steps <= KNOWN:
            # The first step of a shape may have prepared what all others use.
            cell.log_ns = min(cell.log_ns, log_ns)
            return
        if cell.rehearsed and 0 < cell.served <= KNOWN and surprise < 0:
            cell.log_ns += surprise
            return
        surprise = max(-MAX_SURPRISE, min(MAX_SURPRISE, surprise))
        self._noise += NOISE_RATE * (abs(surprise) - self._noise)
        self._drift += DRIFT_RATE * surprise
        moved = DRIFT_LEAK * self._drift
        self._drift -= moved
        cell.log_ns += moved + rate * surprise * (1 - DRIFT_RATE)

    def rehearsed(self, times: Mapping[tuple[int, int], int], context: int) -> None:
        """What uniform batches took, in ns: by sequences and rows of each sequence, all pairs of
        some of either, with ``context`` tokens before each sequence.

        Sizes between are interpolated, as powers of either. All of them count as measured, but
        for no more steps than that takes.
        """
        batches = sorted({batch for batch, _ in times})
        widths = sorted({width for _, width in times})
        logs = np.log([[max(1, times[batch, width]) for width in widths] for batch in batches])
        log_batches, log_widths = np.log(batches), np.log(widths)
        for bucket in range(batch_bucket(batches[0]), batch_bucket(batches[-1]) + 1):
            sequences = 2 ** (bucket / BATCHES_PER_OCTAVE)
            at_batch = [np.interp(math.log(sequences), log_batches, column) for column in logs.T]
            for half_rows in range(WIDTHS_PER_ROW * widths[0], WIDTHS_PER_ROW * widths[-1] + 1):
                width = half_rows / WIDTHS_PER_ROW
                log_ns = float(np.interp(math.log(width), log_widths, at_batch))
                key = bucket, half_rows, context_bucket(context)
                self._cells.setdefault(
                    key,
                    _Cell(
                        log_ns,
                        sequences * width,
                        sequences * context,
                        KNOWN,
                        self._steps,
                        served=0,
                        rehearsed=True,
                    ),
                )

    def estimate(
        self, sequences: int, rows: Floats, context: int
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The times in ns of steps with ``rows`` [N], ascending, and whether they are measured.

        Of one that is not, the most that it is known to cost at least; 0 if nothing is known. None
        that was not served costs more than one with more rows that was.
        """
        times = np.zeros(len(rows))
        known = np.zeros(len(rows), np.bool_)
        counts = rows.tolist()
        cells = [self._cells.get(_key(sequences, count, context)) for count in counts]
        bounds: Floats | None = None
        ceiling = math.inf
        for index in reversed(range(len(rows))):
            count, cell = counts[index], cells[index]
            if cell is None or cell.steps < KNOWN:
                bounds = self._bounds(rows, context) if bounds is None else bounds
                times[index] = min(ceiling, float(bounds[index]))
                continue
            scaled = cell.log_ns + ELASTICITY * math.log(count / cell.rows) + self._drift
            times[index] = math.exp(scaled - self._doubt(cell))
            known[index] = True
            if cell.served:
                ceiling = min(ceiling, float(times[index]))
            else:
                times[index] = min(ceiling, float(times[index]))
        return np.maximum.accumulate(times), known

    def least(
        self, sequences: int, rows: Floats, context: int
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """How little steps with ``rows`` [N], ascending, could cost, in ns, and whether that is
        sure: what was only rehearsed, or was served long ago, says nothing here."""
        at = [self._cells.get(_key(sequences, count, context)) for count in rows.tolist()]
        sure = np.array([cell is not None and self._is_sure(cell) for cell in at])
        cells = [cell for cell in self._cells.values() if self._is_sure(cell)]
        return self._at_least(rows, context, _columns(cells)), sure

    def _evidence(self, cell: _Cell) -> float:
        """The steps of a cell, less what was forgotten of them."""
        return cell.steps * float(0.5 ** ((self._steps - cell.last) / STALE_CYCLES))

    def _is_sure(self, cell: _Cell) -> bool:
        return cell.served >= SURE and self._steps - cell.last <= STALE_CYCLES

    def _doubt(self, cell: _Cell) -> float:
        """How far below its mean the true cost may well be, as a logarithm."""
        evidence = max(LEAST_EVIDENCE, self._evidence(cell))
        return DOUBT * max(MIN_NOISE, self._noise) / math.sqrt(evidence)

    def _bounds(self, rows: Floats, context: int) -> Floats:
        if self._steps >= self._gathered_at + GATHER_INTERVAL or not self._gathered.size:
            self._gather()
        return self._at_least(rows, context, self._gathered)

    def _at_least(self, rows: Floats, context: int, columns: Floats) -> Floats:
        """What is known of steps with ``rows`` [N] from cells, as :func:`_columns` has them."""
        logs, its_rows, contexts = columns
        if not len(logs):
            return np.zeros(len(rows))
        smaller = np.minimum(1.0, rows[:, None] / its_rows)
        smaller = np.minimum(smaller, max(1, context) / contexts)
        bounds: Floats = BOUND_SLACK * (smaller * np.exp(logs + self._drift)).max(axis=1)
        return bounds

    def _gather(self) -> None:
        """Make columns of the measured cells."""
        self._gathered = _columns([cell for cell in self._cells.values() if cell.steps >= KNOWN])
        self._gathered_at = self._steps


def _columns(cells: Sequence[_Cell]) -> Floats:
    """Logarithms of times, rows, contexts: [3, N]."""
    found = [(cell.log_ns, cell.rows, max(1.0, cell.context)) for cell in cells]
    columns: Floats = np.array(found, float).reshape(-1, 3).T
    return columns


def batch_bucket(sequences: int) -> int:
    """Batch sizes that are taken for one: a quarter of an octave."""
    return round(BATCHES_PER_OCTAVE * math.log2(sequences))


def _key(sequences: int, rows: float, context: int) -> tuple[int, int, int]:
    batch = batch_bucket(sequences)
    width = round(WIDTHS_PER_ROW * rows / sequences)
    return batch, width, context_bucket(context / sequences)


def context_bucket(mean: float) -> int:
    """Mean contexts that are taken for one: an octave, or all that are short."""
    return max(0, math.ceil(math.log2(max(1.0, mean) / SHORT_CONTEXT)))
