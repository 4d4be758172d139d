"""Questions to the schedulers on behalf of clients that asked for ``info``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pdv_mp.front.outbox import Connection
from pdv_mp.front.replicas import Replica
from pdv_mp.wire import engine as wire

EngineInfo = dict[int, dict[str, Any]]
"""What schedulers answered, by the number of the replica; those that are away are missing."""


class Inquiries:
    """At most one round of questions is on its way; it answers all who asked before it.

    ``answer`` is called with the connections that asked and what was found out. A round does not
    wait for a replica whose process dies meanwhile.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        answer: Callable[[list[Connection], EngineInfo], None],
    ) -> None:
        self._replicas = replicas
        self._answer = answer
        self._number = 0
        self._missing: set[int] = set()
        self._found: EngineInfo = {}
        self._waiting: list[Connection] = []
        self._next: list[Connection] = []
        self._next_batches = 0

    def ask(self, connection: Connection, batches: int) -> None:
        """A client wants to know, and to see at least so many of the last batches; it is answered
        at once if no scheduler is there."""
        self._next.append(connection)
        self._next_batches = max(self._next_batches, batches)
        if not self._missing:
            self._begin()

    def _begin(self) -> None:
        self._number += 1
        self._waiting, self._next = self._next, []
        batches, self._next_batches = self._next_batches, 0
        self._found = {}
        for replica in self._replicas:
            if replica.serves:
                replica.edge.send(wire.InfoRequest(number=self._number, batches=batches))
        self._missing = {replica.number for replica in self._replicas if replica.serves}
        self._end_when_complete()

    def heard(self, replica: Replica, reply: wire.InfoReply) -> None:
        """A scheduler has answered."""
        if reply.number == self._number and replica.number in self._missing:
            self._found[replica.number] = reply.info
            self._missing.discard(replica.number)
            self._end_when_complete()

    def without(self, replica: Replica) -> None:
        """A scheduler is gone and answers no more."""
        self._found.pop(replica.number, None)
        if replica.number in self._missing:
            self._missing.discard(replica.number)
            self._end_when_complete()

    def _end_when_complete(self) -> None:
        if self._missing:
            return
        waiting, self._waiting = self._waiting, []
        self._answer(waiting, self._found)
        if self._next:
            self._begin()
