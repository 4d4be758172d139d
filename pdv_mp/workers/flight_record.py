"""What a worker was working on when it died, in a file that outlives it.

The worker maps the file and writes the requests of each batch into it before the batch runs: a few
stores to memory, no system call. The kernel keeps them whatever ends the process.

Layout, int64 in native order: the number of requests, then their keys.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from pdv_mp.mapped_file import create_mapped

_NUMBER = struct.Struct("=q")


def record_path(run_dir: Path, worker: str, generation: int) -> Path:
    """The file of one process in a worker's role."""
    return run_dir / f"batch-{worker}.{generation}"


class FlightRecord:
    """The worker's end; ``capacity`` is the most requests that it may work on at once.

    Raises OSError as :func:`~pdv_mp.mapped_file.create_mapped` does.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        self._map = create_mapped(path, (1 + capacity) * _NUMBER.size)

    def enter(self, requests: Sequence[int]) -> None:
        """From now on the worker works on these requests, by key."""
        struct.pack_into(f"={len(requests)}q", self._map, _NUMBER.size, *requests)
        _NUMBER.pack_into(self._map, 0, len(requests))

    def leave(self) -> None:
        """From now on it works on none."""
        _NUMBER.pack_into(self._map, 0, 0)

    def close(self) -> None:
        """Unmap the file; it stays for its reader."""
        self._map.close()


def take_record(path: Path) -> frozenset[int]:
    """The requests on which a process that is dead was working. The file is removed; one that is
    missing or damaged names none."""
    try:
        data = path.read_bytes()
        path.unlink()
    except FileNotFoundError:  # it died before it had made one
        return frozenset()
    if len(data) < _NUMBER.size:
        return frozenset()
    (count,) = _NUMBER.unpack_from(data)
    if not 0 <= count <= len(data) // _NUMBER.size - 1:
        return frozenset()
    return frozenset(struct.unpack_from(f"={count}q", data, _NUMBER.size))
