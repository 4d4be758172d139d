"""The record of batches that a worker's stages ran, its lanes' included."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

BATCHES_KEPT = 4096
"""Batches that the record holds; older ones are forgotten."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch that a stage ran; times in ns (monotonic).

    ``rows``: tokens fed, of a draft batch tokens proposed. ``decoding``: sequences that were in the
    decode batch at that time, in this batch or waiting.
    """

    stage: str
    picked_ns: int
    started_ns: int
    ended_ns: int
    sequences: int
    rows: int
    decoding: int

    def as_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return {name: getattr(self, name) for name in self.__slots__}


BatchRecords = deque[BatchRecord]


def batch_records() -> BatchRecords:
    """An empty record, oldest batch first."""
    return deque(maxlen=BATCHES_KEPT)
