"""Finds processes that are alive and do not answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

LOOKS_PER_TIMEOUT = 4

BUSY_SHARE = 0.05
"""Of one core: who uses more of it is taken to be computing."""

PATIENCE = 12
"""How many times longer one that computes may be silent: a step of a large model takes its time,
but an endless loop must end."""


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used; 0 when it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


@dataclass(slots=True)
class _Signs:
    """When a process last answered, when it was last seen to compute, and what it had used then."""

    answered: float
    computed: float
    used: float


class Heartbeat:
    """Who has fallen silent: named within ``timeout`` seconds, and not before three quarters of
    them, since only looks tell when a process last computed.

    A process is known by its id, so a successor starts with a clean slate. With a timeout of 0
    nobody is looked at. The caller brings the clock, and asks all processes at each look.
    """

    def __init__(self, timeout: float, used: Callable[[int], float] = cpu_seconds) -> None:
        self._timeout = timeout
        self._interval = timeout / LOOKS_PER_TIMEOUT
        self._used = used
        self._signs: dict[int, _Signs] = {}
        self.deadline = -math.inf if timeout else math.inf

    def answered(self, pid: int, now: float) -> None:
        """A process has answered."""
        if pid in self._signs:
            self._signs[pid].answered = now

    def look(self, pids: Iterable[int], now: float) -> dict[int, float]:
        """Which of these, all that should answer, are hung, and for how many seconds they were
        given time. To be called when ``deadline`` has come, which sets the next one.

        If we come much too late ourselves, because we were stopped or starved, nobody had a chance
        to answer us: then all begin anew.
        """
        if now - self.deadline > self._interval:
            self._signs.clear()
        self.deadline = now + self._interval
        before, self._signs = self._signs, {}
        hung = {}
        for pid in pids:
            used = self._used(pid)
            signs = self._signs[pid] = before.get(pid) or _Signs(now, now, used)
            if used - signs.used >= BUSY_SHARE * self._interval:
                signs.computed = now
            signs.used = used
            # A look sees what happened since the one before: it is that much late.
            if now - max(signs.answered, signs.computed) >= self._timeout - self._interval:
                hung[pid] = self._timeout
            elif now - signs.answered >= PATIENCE * self._timeout:
                hung[pid] = PATIENCE * self._timeout
        return hung
