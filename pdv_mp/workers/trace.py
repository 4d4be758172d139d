"""What a process ran and received, in a file that outlives it: the raw form of ``--trace``.

The process maps the file and writes a record of 48 bytes for each batch and each message: stores to
memory, no system call, whatever the disk does. Of more than :data:`CAPACITY` records the oldest are
overwritten. The kernel keeps the file whatever ends the process, and a record counts when it is
complete. The launcher makes the trace file of all of them at the end (launcher/trace_file.py).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pdv_mp.config import EngineConfig
from pdv_mp.mapped_file import create_mapped
from pdv_mp.wire.frames import Stamps

CAPACITY = 65_536
"""Records that a process keeps, 3 MiB: some minutes of a busy server."""

PART_PREFIX = "trace-"

BATCH, MESSAGE, DECISION = 1, 2, 3

PARTS_PER_UNIT = 10_000
"""In which a probability is recorded."""

BATCH_STAGES = ("prefill", "draft", "verify", "text", "tokenizer")
"""Whose batches are recorded; ``text`` is the front's work on a message with tokens."""

EDGES = (
    "front>verify",
    "verify>front",
    "verify>prefill",
    "prefill>verify",
    "verify>draft",
    "draft>verify",
    "front>tokenizer",
    "tokenizer>front",
)
"""All edges of a replica, those that join two stages of one process too, and those between the
front and a tokenizer, whose number stands for that of the replica."""

RECORD = np.dtype(
    [
        ("kind", "u1"),
        ("what", "u1"),
        ("replica", "<u2"),
        ("first", "<i4"),
        ("second", "<i4"),
        ("third", "<i4"),
        *((f"stamp{number}", "<i8") for number in range(4)),
    ]
)
"""A batch: ``what`` its stage, sequences, rows, decoding; picked, started, ended, 0. A message:
``what`` its edge, size, 0, 0; encode, sent, received, decoded (ns, monotonic). A decision
on a draft length: that length, sequences, the acceptance that is expected; when, 0, 0, 0."""

_RECORD = struct.Struct("<BBHiiiqqqq")
_HEADER = struct.Struct("<8sQQ")
_COUNT = struct.Struct("<Q")
_MAGIC = b"pdvtrace"
_COUNT_OFFSET = 8

_STAGE_NUMBER = {stage: number for number, stage in enumerate(BATCH_STAGES)}
_EDGE_NUMBER = {edge: number for number, edge in enumerate(EDGES)}


class Trace:
    """The writing end. Raises OSError as :func:`~pdv_mp.mapped_file.create_mapped` does."""

    def __init__(self, path: Path, capacity: int = CAPACITY) -> None:
        self._map = create_mapped(path, _HEADER.size + capacity * _RECORD.size)
        self._capacity = capacity
        self._count = 0
        _HEADER.pack_into(self._map, 0, _MAGIC, 0, capacity)

    def batch(
        self,
        stage: str,
        stamps: tuple[int, int, int],
        sequences: int,
        rows: int,
        decoding: int = 0,
        replica: int = 0,
    ) -> None:
        """A batch that was ``stamps``: picked, started, ended."""
        fields = (BATCH, _STAGE_NUMBER[stage], replica, sequences, rows, decoding)
        self._write(*fields, *stamps, 0)

    def message(self, edge: str, stamps: Stamps, replica: int = 0) -> None:
        """A message that has been decoded by its receiver."""
        times = (stamps.encode_ns, stamps.sent_ns, stamps.received_ns, stamps.decoded_ns)
        self._write(MESSAGE, _EDGE_NUMBER[edge], replica, stamps.size, 0, 0, *times)

    def decision(self, now: int, length: int, sequences: int, acceptance: float) -> None:
        """A cycle of so many sequences starts, with drafts of at most ``length`` tokens."""
        expected = round(PARTS_PER_UNIT * acceptance)
        self._write(DECISION, 0, 0, length, sequences, expected, now, 0, 0, 0)

    def _write(self, *fields: int) -> None:
        place = self._count % self._capacity
        _RECORD.pack_into(self._map, _HEADER.size + place * _RECORD.size, *fields)
        self._count += 1
        _COUNT.pack_into(self._map, _COUNT_OFFSET, self._count)

    def close(self) -> None:
        """Unmap the file; it stays for its reader."""
        self._map.close()


@dataclass(frozen=True, slots=True)
class TracePart:
    """What one generation of a process recorded: :data:`RECORD`, oldest first; ``lost``: older
    records that were overwritten."""

    process: str
    generation: int
    records: npt.NDArray[Any]
    lost: int


def open_trace(config: EngineConfig, run_dir: Path, process: str, generation: int) -> Trace | None:
    """The trace of a process, if ``--trace`` asks for one."""
    if config.server.trace is None:
        return None
    return Trace(run_dir / f"{PART_PREFIX}{process}.{generation}")


def read_parts(run_dir: Path) -> list[TracePart]:
    """What the processes of a run directory have recorded; a file of one that died before it had
    made it whole counts as empty."""
    parts = []
    for path in sorted(run_dir.glob(f"{PART_PREFIX}*.*")):
        process, _, generation = path.name.removeprefix(PART_PREFIX).rpartition(".")
        data = path.read_bytes()
        records, lost = _records(data)
        parts.append(TracePart(process, int(generation), records, lost))
    return parts


def _records(data: bytes) -> tuple[npt.NDArray[Any], int]:
    nothing = np.zeros(0, RECORD)
    if len(data) < _HEADER.size:
        return nothing, 0
    magic, count, capacity = _HEADER.unpack_from(data)
    if magic != _MAGIC or len(data) != _HEADER.size + capacity * _RECORD.size:
        return nothing, 0
    ring = np.frombuffer(data, RECORD, offset=_HEADER.size)
    if count <= capacity:
        return ring[:count], 0
    return np.roll(ring, -(count % capacity)), count - capacity
