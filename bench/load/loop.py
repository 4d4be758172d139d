"""A load on a running server for a window of time.

The window starts ``ramp`` seconds after the first requests may be sent and is of a fixed length;
every token that arrives in it counts, those of requests that are cut off at its end included, and
none besides. What is open at its end is then cancelled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.load.connection import DRAIN_SECONDS, SECOND, Connection
from bench.load.errors import LoadError
from bench.load.gpu import GpuSampler
from bench.load.punctuality import punctual
from bench.load.records import REFUSALS, Request, Requests
from bench.load.sources import Source, Work, source_of
from bench.load.usage import Processes, others, uses
from bench.load.window import Window, count, lateness, present
from bench.load.workloads import Ask
from bench.results.records import Load
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.wire.protocol import generate

CLIENTS = "clients"
"""The name of the clients' own process among those whose use is told."""


class Loop:
    """Clients of one running server; a context manager that closes their connection.

    ``pids``: the server's processes by name, whose use is told beside the clients' own.
    ``is_running`` is asked when the server is silent. After a LoadError requests may be open that
    nobody waits for: make another Loop.
    """

    def __init__(
        self,
        endpoint: str,
        pids: Mapping[str, int] | None = None,
        is_running: Callable[[], bool] = lambda: True,
    ) -> None:
        self._processes = Processes({**(pids or {}), CLIENTS: os.getpid()})
        self._connection = Connection(endpoint, is_running)
        self._requests = Requests()

    def run(
        self,
        work: Work,
        load: Load,
        *,
        block: int,
        ramp: float,
        seconds: float,
        timelines: bool = False,
    ) -> Window:
        """One window.

        Raises LoadError if the server loses a request, is silent or gone, and in a closed loop
        also if it refuses or fails a request or ends one before its length; otherwise that is
        counted. Raises ValueError for a load that lacks what its kind needs.
        """
        self._requests.clear()
        with GpuSampler() as gpus, punctual():
            begin_ns = time.monotonic_ns()
            start_ns = begin_ns + round(ramp * SECOND)
            end_ns = start_ns + round(seconds * SECOND)
            source = source_of(work, load, block, begin_ns)
            run = _Run(self._connection, self._requests, source, work, end_ns, timelines)
            self._connection.begin()
            run.until(start_ns)
            before = self._processes.sample()
            gpus.begin()
            run.until(end_ns)
            after = self._processes.sample()
            seen = gpus.end()
            memory = self._processes.memory()
            run.drain()
        records = [request.record(start_ns) for request in self._requests.all]
        window_ns = end_ns - start_ns
        late, invalid = lateness(records, window_ns) if source.has_schedule else (None, None)
        return Window(
            load=load,
            start_ns=start_ns,
            end_ns=end_ns,
            records=records,
            counts=count(present(records, window_ns), REFUSALS),
            lateness_ms=late,
            invalid=invalid,
            uses=uses(before, after, memory),
            gpus=seen,
            host_load=others(before, after),
        )

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.__exit__(*exception)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request that is to be sent at ``due_ns``."""

    due_ns: int
    client: int
    ask: Ask
    id: str
    frame: bytes


class _Run:
    """The requests of one window."""

    def __init__(
        self,
        connection: Connection,
        requests: Requests,
        source: Source,
        work: Work,
        end_ns: int,
        timelines: bool,
    ) -> None:
        self._connection = connection
        self._requests = requests
        self._source = source
        self._work = work
        self._end_ns = end_ns
        self._timelines = timelines
        self._draining = False
        self._prepared: _Prepared | None = None

    def until(self, moment_ns: int) -> None:
        """Sends what is due and takes what comes until that time."""
        while True:
            self._send_due()
            if time.monotonic_ns() >= moment_ns:
                return
            prepared = self._prepared
            self._receive(moment_ns if prepared is None else min(moment_ns, prepared.due_ns))

    def drain(self) -> None:
        """Cancels what is open and waits for its end."""
        self._draining = True
        for request in self._requests.open.values():
            request.cut_off = True
        self._connection.cancel(self._requests.open)
        deadline_ns = time.monotonic_ns() + round(DRAIN_SECONDS * SECOND)
        while self._requests.open:
            if time.monotonic_ns() >= deadline_ns:
                raise LoadError(f"cancelled requests have not ended after {DRAIN_SECONDS:g} s")
            self._receive(deadline_ns)

    def _receive(self, until_ns: int) -> None:
        received = self._connection.receive()
        if received is None:
            self._connection.wait(until_ns, lambda: bool(self._requests.open))
            return
        request = self._requests.take(*received)
        if request is None:
            return
        if not (self._source.has_schedule or self._draining or request.is_whole):
            raise LoadError(_what_ended(request))
        self._source.ended(request)

    def _send_due(self) -> None:
        """What is scheduled before the window's end is sent even if the clients are late."""
        while True:
            self._prepare()
            prepared = self._prepared
            if prepared is None or prepared.due_ns > time.monotonic_ns():
                return
            self._prepared = None
            ask, id = prepared.ask, prepared.id
            sent_ns = self._connection.send(prepared.frame)
            arrival_ns = prepared.due_ns if self._source.has_schedule else sent_ns
            length = len(self._work.prompts[ask.prompt])
            self._requests.add(Request(id, prepared.client, ask, length, arrival_ns, sent_ns))

    def _prepare(self) -> None:
        """The next message is made before it is due, since a long prompt takes a while."""
        due_ns = self._source.due_ns()
        if self._prepared is not None or due_ns is None or due_ns >= self._end_ns:
            return
        client, ask = self._source.next()
        id = self._requests.new_id()
        params = SamplingParams(
            max_tokens=ask.max_tokens,
            temperature=self._work.temperature,
            seed=ask.seed,
            ignore_eos=True,
        )
        frame = generate(id, self._work.prompts[ask.prompt], params, timeline=self._timelines)
        self._prepared = _Prepared(due_ns, client, ask, id, frame)


def _what_ended(request: Request) -> str:
    if request.error is not None:
        return f"{request.error}: {request.done['message']}"
    return (
        f"a request ended with {request.finish} after {len(request.ids)} of "
        f"{request.ask.max_tokens} tokens"
    )
