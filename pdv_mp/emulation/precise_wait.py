"""Waiting until a moment, to within microseconds and without computing all the while."""

from __future__ import annotations

import ctypes
import time

_PR_SET_TIMERSLACK = 29
_SLACK_NS = 1000

_LEAST_MARGIN_NS = 20_000
_MOST_MARGIN_NS = 250_000
_DECAY = 0.98
_SAFETY = 1.5


class PreciseWait:
    """Sleeps most of the time and asks the clock again and again for the last part of it.

    The part is as long as the system woke this thread late before, within bounds: a quiet machine
    needs some tens of microseconds. The kernel may wake a thread later than asked by its timer
    slack, 50 µs unless it is told otherwise; for the thread that makes this object it is set to
    1 µs.

    Where all cores are busy a thread is late because it gets none. Real-time priority during the
    wait only moves that: who gives it back may lose the core, and is late right after the wait.
    """

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _SLACK_NS, 0, 0, 0)
        self._margin_ns = 4 * _LEAST_MARGIN_NS

    def until(self, deadline_ns: int) -> int:
        """Return at ``deadline_ns`` (monotonic); by how many ns that was missed."""
        wake_ns = deadline_ns - self._margin_ns
        asleep_ns = wake_ns - time.monotonic_ns()
        if asleep_ns > 0:
            time.sleep(asleep_ns * 1e-9)
            late_ns = time.monotonic_ns() - wake_ns
            wanted_ns = max(int(late_ns * _SAFETY), int(self._margin_ns * _DECAY))
            self._margin_ns = min(_MOST_MARGIN_NS, max(_LEAST_MARGIN_NS, wanted_ns))
        while (now := time.monotonic_ns()) < deadline_ns:
            pass
        return now - deadline_ns
