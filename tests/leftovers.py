"""Finds what a test has left behind: processes, files of run directories, shared memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "PYTEST_LEFTOVERS_MARK"
"""Environment variable by which the processes that descend from this test run are known."""

_SHARED_MEMORY = Path("/dev/shm")


def marked_processes(mark: str) -> set[int]:
    """Processes, other than this one, whose environment carries the mark."""
    entry = f"{MARK}={mark}".encode()
    return {
        pid
        for pid in _pids()
        if pid != os.getpid() and entry in _read(pid, "environ").split(b"\0") and not _zombie(pid)
    }


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""  # it has ended, or it is another user's


def _zombie(pid: int) -> bool:
    return b"\nState:\tZ" in _read(pid, "status")


def describe(pid: int) -> str:
    """Process id and command line."""
    return f"{pid}: {_read(pid, 'cmdline').replace(chr(0).encode(), b' ').decode()}"


class Leftovers:
    """What is there when the object is made does not count; what is there at :meth:`check` does."""

    def __init__(self, mark: str, run_base: Path) -> None:
        self._mark = mark
        self._run_base = run_base
        self._before = self._now()

    def _now(self) -> dict[str, set[str]]:
        return {
            "processes": {str(pid) for pid in marked_processes(self._mark)},
            "files": {str(path) for path in self._run_base.rglob("*")},
            "shared memory": _shared_memory(),
        }

    def check(self, seconds: float = 5.0) -> list[str]:
        """What is left after at most so long, one line each."""
        deadline = time.monotonic() + seconds
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return [
            f"{kind}: {describe(int(name)) if kind == 'processes' else name}"
            for kind, names in left.items()
            for name in sorted(names)
        ]

    def _left(self) -> dict[str, set[str]]:
        left = {kind: names - self._before[kind] for kind, names in self._now().items()}
        if left["shared memory"]:
            left["shared memory"] = {
                name for name in left["shared memory"] if not _used_by_others(name, self._mark)
            }
        return {kind: names for kind, names in left.items() if names}


def _shared_memory() -> set[str]:
    names = set()
    with contextlib.suppress(OSError):
        for path in _SHARED_MEMORY.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_uid == os.getuid():
                    names.add(str(path))
    return names


def _used_by_others(name: str, mark: str) -> bool:
    ours = marked_processes(mark) | {os.getpid()}
    return any(name.encode() in _read(pid, "maps") for pid in _pids() if pid not in ours)
