"""The record of batches that a worker's stages ran, its lanes' included."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from pdv_mp.workers.trace import Trace

if TYPE_CHECKING:
    from pdv_mp.lanes.stamps import BatchStamps

BATCHES_KEPT = 4096
"""Batches that the record holds; older ones are forgotten."""

_HERE = ""


class BatchRecord(NamedTuple):
    """One batch that a stage ran; times in ns (monotonic).

    ``rows``: tokens fed, of a draft batch tokens proposed. ``decoding``: sequences that were in the
    decode batch at that time, in this batch or waiting. ``groups``: those that the decode
    batch is divided into. ``discarded``: draft tokens that a verification rejected. ``idle_ns``:
    how long the process had computed nothing before it picked this batch, 0 for its first one.
    """

    stage: str
    picked_ns: int
    started_ns: int
    ended_ns: int
    sequences: int
    rows: int
    decoding: int
    groups: int
    discarded: int
    idle_ns: int


@dataclass(slots=True)
class StageTotals:
    """All batches of a stage since the start. ``idle_ns``: of the process that hosts it, before
    these batches."""

    batches: int = 0
    sequences: int = 0
    rows: int = 0
    discarded: int = 0
    batch_ns: int = 0
    compute_ns: int = 0
    idle_ns: int = 0

    def add(self, record: BatchRecord) -> None:
        """One batch more."""
        self.batches += 1
        self.sequences += record.sequences
        self.rows += record.rows
        self.discarded += record.discarded
        self.batch_ns += record.started_ns - record.picked_ns
        self.compute_ns += record.ended_ns - record.started_ns
        self.idle_ns += record.idle_ns

    def as_dict(self) -> dict[str, int]:
        """All fields by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class BatchRecords:
    """The last batches of a replica, oldest first, and totals by stage.

    ``lanes``: stages that have a process of their own. ``trace``: where batches are traced, if they
    are.
    """

    def __init__(self, lanes: Collection[str] = ()) -> None:
        self.trace: Trace | None = None
        self._lanes = frozenset(lanes)
        self._records: deque[BatchRecord] = deque(maxlen=BATCHES_KEPT)
        self._ended_ns: dict[str, int] = {}
        self._totals: dict[str, StageTotals] = {}

    def __iter__(self) -> Iterator[BatchRecord]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def note(
        self,
        stage: str,
        batch: BatchStamps,
        sequences: int,
        rows: int,
        decoding: int,
        groups: int,
        discarded: int = 0,
    ) -> None:
        """A batch has ended."""
        host = stage if stage in self._lanes else _HERE
        idle_ns = batch.picked_ns - self._ended_ns.get(host, batch.picked_ns)
        self._ended_ns[host] = batch.ended_ns
        stamps = (batch.picked_ns, batch.started_ns, batch.ended_ns)
        record = BatchRecord(stage, *stamps, sequences, rows, decoding, groups, discarded, idle_ns)
        self._records.append(record)
        totals = self._totals.get(stage)
        if totals is None:
            totals = self._totals[stage] = StageTotals()
        totals.add(record)
        if self.trace is not None:
            self.trace.batch(stage, stamps, sequences, rows, decoding)

    def latest(self, count: int) -> list[dict[str, Any]]:
        """The last batches, oldest first."""
        skipped = max(0, len(self._records) - count)
        return [record._asdict() for record in islice(self._records, skipped, None)]

    def totals(self) -> dict[str, dict[str, int]]:
        """By stage, of all batches since the start."""
        return {stage: totals.as_dict() for stage, totals in self._totals.items()}
