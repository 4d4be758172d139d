"""Finds processes that are alive and do not answer."""

from __future__ import annotations

import math
from collections.abc import Iterable

PINGS_PER_TIMEOUT = 4


class Heartbeat:
    """Who is to be asked for a sign of life, and who has owed one for ``timeout`` seconds.

    A process is known by its id, so a successor starts with a clean slate. With a timeout of 0
    nobody is asked. The caller brings the clock.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._interval = timeout / PINGS_PER_TIMEOUT
        self._answered: dict[int, float] = {}
        self._next_ping = -math.inf

    @property
    def deadline(self) -> float:
        """When :meth:`ping` or :meth:`hung` has something to say."""
        if not self._timeout:
            return math.inf
        return min(self._next_ping, *(t + self._timeout for t in self._answered.values()), math.inf)

    def answered(self, pid: int, now: float) -> None:
        """A process has answered."""
        if pid in self._answered:
            self._answered[pid] = now

    def hung(self, pids: Iterable[int], now: float) -> list[int]:
        """Which of these, all that should answer, have not done so for too long.

        If we come much too late ourselves, because we were stopped or starved, nobody had a chance
        to answer us: then all begin anew.
        """
        if not self._timeout:
            return []
        late = now - self.deadline > self._interval
        self._answered = {pid: now if late else self._answered.get(pid, now) for pid in pids}
        return [pid for pid, since in self._answered.items() if now - since >= self._timeout]

    def ping_is_due(self, now: float) -> bool:
        """Whether all are to be asked now; if so, the next time is set."""
        if not self._timeout or now < self._next_ping:
            return False
        self._next_ping = now + self._interval
        return True
