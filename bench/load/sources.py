"""Where the next request comes from: clients that wait for each other's turn, or a schedule.

- Closed loop: C clients, each with one request open at a time; the next one is sent when the one
  before has ended. The server sets the pace.
- Open loop and trace: requests arrive when the schedule says, whatever the server does. Latencies
  count from the scheduled arrival, so a client that is late hides nothing (Tene's "coordinated
  omission").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol

from bench.load.arrivals import arrival_times
from bench.load.connection import SECOND
from bench.load.records import Request
from bench.load.trace import Trace
from bench.load.workloads import Ask, Workload, drawn
from bench.results.records import Load

Work = Workload | Trace


class Source(Protocol):
    """Requests to send, one after the other."""

    has_schedule: bool
    """Whether latencies count from the schedule, and refusals and failures are only counted."""

    def due_ns(self) -> int | None:
        """When the next one is to be sent; None if it waits for another one's end."""

    def next(self) -> tuple[int, Ask]:
        """Its client's number, and what it asks for."""

    def ended(self, request: Request) -> None:
        """One has ended."""


class ClosedLoop:
    """``load.concurrency`` clients, which all begin at once."""

    has_schedule = False

    def __init__(self, workload: Workload, load: Load, block: int, begin_ns: int) -> None:
        clients = range(load.concurrency or 0)
        self._asks = [workload.asks(block, load, client) for client in clients]
        self._due = deque((begin_ns, client) for client in clients)

    def due_ns(self) -> int | None:
        return self._due[0][0] if self._due else None

    def next(self) -> tuple[int, Ask]:
        _, client = self._due.popleft()
        return client, next(self._asks[client])

    def ended(self, request: Request) -> None:
        if request.ended_ns is not None:
            self._due.append((request.ended_ns, request.client))


class Schedule:
    """Requests at fixed times, seconds after ``begin_ns``; all are client 0's."""

    has_schedule = True

    def __init__(self, arrivals: Iterator[tuple[float, Ask]], begin_ns: int) -> None:
        self._arrivals = arrivals
        self._begin_ns = begin_ns
        self._next = next(arrivals, None)

    def due_ns(self) -> int | None:
        return None if self._next is None else self._begin_ns + round(self._next[0] * SECOND)

    def next(self) -> tuple[int, Ask]:
        if self._next is None:
            raise RuntimeError("nothing is due")
        _, ask = self._next
        self._next = next(self._arrivals, None)
        return 0, ask

    def ended(self, request: Request) -> None:
        pass


def scheduled(workload: Workload, load: Load, block: int) -> Iterator[tuple[float, Ask]]:
    """The requests of an open loop with their arrivals in seconds, without end. Both are drawn
    from the seed, the block and the load's name alone."""
    times = arrival_times(
        load.rate or 0.0,
        1.0 if load.burstiness is None else load.burstiness,
        drawn(workload.seed, block, f"arrivals of {load.name}", 0),
    )
    return zip(times, workload.asks(block, load, 0), strict=False)


def source_of(work: Work, load: Load, block: int, begin_ns: int) -> Source:
    """Raises ValueError for a load without what its kind needs, or with work of the other kind."""
    if load.kind == "trace":
        if not isinstance(work, Trace):
            raise ValueError(f"load {load.name} replays a trace, and the work is none")
        return Schedule(work.scheduled(), begin_ns)
    if not isinstance(work, Workload):
        raise ValueError(f"load {load.name} replays no trace, and the work is one")
    if load.kind == "closed":
        if not load.concurrency or load.concurrency < 1:
            raise ValueError(f"load {load.name} has no concurrency of 1 or more")
        return ClosedLoop(work, load, block, begin_ns)
    if not load.rate or load.rate <= 0 or (load.burstiness is not None and load.burstiness <= 0):
        raise ValueError(f"load {load.name} has no rate and burstiness above 0")
    return Schedule(scheduled(work, load, block), begin_ns)
