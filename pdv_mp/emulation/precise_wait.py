"""Waiting until a moment, to within microseconds where a core is free."""

from __future__ import annotations

import ctypes
import time

_AWAKE_NS = 4_000_000
_EXACT_NS = 5_000


class PreciseWait:
    """Sleeps while the moment is far, then asks the clock again and again, as the host of a GPU
    does that waits for it; between two looks the core is offered to whoever wants it.

    A core that goes idle may take more than a millisecond to wake up on a virtual machine; one that
    somebody else has comes back when they sleep, or after their time slice: on a machine with fewer
    cores than threads that compute, that is by how much a wait may be late. Real-time priority only
    moves that: who gives it back may lose the core, and is late right after the wait.
    """

    def __init__(self) -> None:
        self._offer_core = ctypes.CDLL(None).sched_yield

    def until(self, deadline_ns: int) -> int:
        """Return at ``deadline_ns`` (monotonic); by how many ns that was missed."""
        asleep_ns = deadline_ns - _AWAKE_NS - time.monotonic_ns()
        if asleep_ns > 0:
            time.sleep(asleep_ns * 1e-9)
        while (now := time.monotonic_ns()) < deadline_ns:
            if deadline_ns - now > _EXACT_NS:
                self._offer_core()
        return now - deadline_ns
