"""Steps of a device that is the host's own CPU: they take a core's time instead of waiting.

Whatever else runs on the host, servers' fronts and clients among it, is in the way of such a step
as it is in the way of a real one, and the step in its way: the system's scheduler deals with both,
and what a step has read is in the caches in place of what was there before.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable

_PART = 1 << 14
_BYTES = 8 << 20


class CoreTime:
    """Reads memory on the thread that calls it; other threads of the process go on meanwhile."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(os.urandom(_PART)) * (_BYTES // _PART))
        self._place = 0

    def spend(self, nanoseconds: int, pace: Callable[[], float]) -> int:
        """Return when this thread has had so much of a core's time, each part of it divided by what
        ``pace`` says then (1 or more), to the nearest some microseconds; by how many ns it was
        more."""
        left, part, last = float(nanoseconds), 0.0, time.thread_time_ns()
        while left > part / 2:
            slower = pace()
            # Some microseconds, without the interpreter's lock.
            zlib.crc32(self._memory[self._place : self._place + _PART])
            self._place = (self._place + _PART) % _BYTES
            now = time.thread_time_ns()
            part = (now - last) / slower
            left, last = left - part, now
        return round(-left)
