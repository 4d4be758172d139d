"""What the front knows of one replica: its scheduler's edge, its credits and its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pdv_mp.front.engine_edge import EngineEdge
from pdv_mp.front.quarantine import Quarantine
from pdv_mp.wire import engine as wire

if TYPE_CHECKING:
    from pdv_mp.front.journal import Request


class Replica:
    """One replica, by the name of the process that holds its scheduler.

    ``credits``: requests that may be at the scheduler at once. ``running``: those opened there and
    not ended, by key. ``closing``: keys of those that ended here while the scheduler has yet to
    give their credits back. ``restarting``: the process died and is not ready again.
    ``restarts``: how often that has happened. ``facts``: of its latest start.
    """

    def __init__(self, number: int, name: str, edge: EngineEdge) -> None:
        self.number = number
        self.name = name
        self.edge = edge
        self.facts: dict[str, Any] = {}
        self.credits = 0
        self.running: dict[int, Request] = {}
        self.closing: set[int] = set()
        self.quarantine = Quarantine(name)
        self.restarting = False
        self.restarts = 0
        self._to_close: list[int] = []

    @property
    def serves(self) -> bool:
        """Whether its process is there."""
        return not self.restarting and not self.edge.lost

    @property
    def num_open(self) -> int:
        """Requests at the scheduler; each has a credit."""
        return len(self.running) + len(self.closing)

    @property
    def free_credits(self) -> int:
        """Requests that may still be opened."""
        return self.credits - self.num_open

    @property
    def takes_any(self) -> bool:
        """Whether any request may be opened here: none is alone here or waits to be."""
        return self.serves and self.free_credits > 0 and not self.quarantine.excludes_others

    def next_suspect(self) -> Request | None:
        """The request that may be opened here now to be alone."""
        if not self.serves or self.num_open or self.quarantine.alone is not None:
            return None
        return next(iter(self.quarantine.suspects.values()), None)

    def started(self, facts: dict[str, Any]) -> None:
        """Its process is ready, with these facts."""
        self.facts = facts
        self.credits = facts["credits"]
        self.restarting = False

    def died(self) -> None:
        """Its process died and is being replaced; what was at its scheduler is not there now."""
        self.restarting = True
        self.restarts += 1
        self.running.clear()
        self.closing.clear()
        self._to_close.clear()

    def close(self, request: Request) -> None:
        """A request ended here; the scheduler is told at the end of the turn."""
        del self.running[request.key]
        self.closing.add(request.key)
        self._to_close.append(request.key)

    def park(self, request: Request) -> None:
        """Ask the scheduler to give a request back that is to wait again."""
        request.parking = True
        self._to_close.append(request.key)

    def send_closes(self) -> None:
        """Tell the scheduler what was closed or parked."""
        if self._to_close:
            self.edge.send(wire.Close(requests=np.array(self._to_close, np.int64)))
            self._to_close.clear()
