"""How often a worker that died is started again, and how soon."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from launcher.child import Child


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """At most ``max_restarts`` restarts of one process within ``window`` seconds.

    The first restart of a window is made at once, the second after ``first_delay`` seconds, and
    each later one after twice the delay of the one before, up to ``longest_delay``.
    """

    max_restarts: int = 10
    window: float = 600.0
    first_delay: float = 0.1
    longest_delay: float = 5.0


class RestartBudget:
    """The restarts that one process has left; the caller brings the clock."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._deaths: deque[float] = deque()

    @property
    def restarts(self) -> int:
        """Restarts granted within the window that ended with the last death."""
        return len(self._deaths)

    @property
    def left(self) -> int:
        """Restarts that are left in that window."""
        return self._policy.max_restarts - len(self._deaths)

    def death(self, now: float) -> float | None:
        """The process died at ``now``: seconds to wait before it is started again, or None if its
        budget is used up."""
        policy = self._policy
        while self._deaths and self._deaths[0] <= now - policy.window:
            self._deaths.popleft()
        if len(self._deaths) >= policy.max_restarts:
            return None
        self._deaths.append(now)
        doublings = len(self._deaths) - 2
        if doublings < 0:
            return 0.0
        return min(policy.first_delay * 2.0 ** min(doublings, 60), policy.longest_delay)


@dataclass(slots=True, eq=False)
class Restart:
    """A process that is gone, or going, and does not serve again yet.

    ``died``: when it was last seen serving. ``due``: the end of its back-off. ``doomed``: who must
    have been reaped before it may start. ``failure``: why it cannot start again. ``deadline``: when
    to look at it: while the doomed live, how long they may; then ``due``; once ``started``, when it
    must have shown progress.
    """

    name: str
    died: float
    due: float
    doomed: tuple[Child, ...]
    deadline: float
    started: bool = False
    failure: str | None = None
