"""A closed loop: C clients, each with one request open at a time, for a window of time.

The clients share one connection and one thread, so that on a small machine they leave the cores to
the server; how much they take is measured. Everything that arrives is stamped when it is taken from
the socket. The window starts ``ramp`` seconds after the first requests and is of a fixed length;
every token that arrives in it counts, those of requests that are cut off at its end included, and
none besides. What is open at its end is then cancelled.

A client's requests are drawn from (seed, block, clients, its number) alone: whoever serves them,
they are the same ones in the same order, and a faster server gets further. Lengths differ widely,
so that requests that began together do not end, and are not replaced, together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import psutil
import zmq

from pdv_mp.sampling_params import SamplingParams
from pdv_mp.wire import protocol

Prompts = Sequence[Sequence[int]]

SILENCE_SECONDS = 5.0
"""A server with requests open says something every second."""

DRAIN_SECONDS = 20.0
"""How long cancelled requests may take to end."""

_LOOK_SECONDS = 0.5
_SECOND = 1_000_000_000


class LoadError(RuntimeError):
    """The server could not serve the load; the message says what it did."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: the number of its prompt, its length and its seed."""

    prompt: int
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Workload:
    """What clients ask for: prompts picked at random, lengths from a quarter of ``tokens`` to seven
    quarters of it, greedy unless ``temperature`` says otherwise."""

    prompts: Prompts
    tokens: int
    seed: int = 0
    temperature: float = 0.0

    def asks(self, block: int, clients: int, client: int) -> Iterator[Ask]:
        """The requests of one client, without end."""
        draw = np.random.default_rng((self.seed, block, clients, client))
        least, most = max(1, self.tokens // 4), self.tokens * 7 // 4
        while True:
            length = int(draw.integers(least, most, endpoint=True))
            prompt, seed = int(draw.integers(len(self.prompts))), int(draw.integers(2**31))
            yield Ask(prompt, length, seed)


@dataclass(slots=True)
class Record:
    """One request. Times are ns of ``time.monotonic_ns``; ``events``: when tokens arrived, and how
    many; ``done``: the fields of its terminal message."""

    id: str
    client: int
    ask: Ask
    arrival_ns: int
    events: list[tuple[int, int]] = field(default_factory=list)
    ended_ns: int | None = None
    done: dict[str, Any] = field(default_factory=dict)

    @property
    def received(self) -> int:
        """Tokens so far."""
        return sum(count for _, count in self.events)


@dataclass(frozen=True, slots=True)
class Use:
    """CPU time, in seconds, of this process and of the server's."""

    client: float
    server: float


@dataclass(slots=True)
class Window:
    """What a window saw. ``client_cpu``, ``server_cpu``: cores used in it, on average."""

    clients: int
    start_ns: int
    end_ns: int
    records: list[Record]
    client_cpu: float
    server_cpu: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end_ns - self.start_ns) / _SECOND

    @property
    def tokens(self) -> int:
        """Every token that arrived in it."""
        return sum(
            count
            for record in self.records
            for stamp, count in record.events
            if self.start_ns <= stamp < self.end_ns
        )

    @property
    def present(self) -> list[Record]:
        """The requests that were open in it, those that its end cut off included. To leave these
        out would be to favour short ones, and to hide the time that they waited."""
        return [
            record
            for record in self.records
            if record.ended_ns is not None and record.ended_ns >= self.start_ns
        ]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The records as JSON takes them; times are ns after the start of the window."""
        for record in self.records:
            ended = None if record.ended_ns is None else record.ended_ns - self.start_ns
            yield {
                "client": record.client,
                "prompt": record.ask.prompt,
                "max_tokens": record.ask.max_tokens,
                "seed": record.ask.seed,
                "arrival_ns": record.arrival_ns - self.start_ns,
                "first_token_ns": record.events[0][0] - self.start_ns if record.events else None,
                "ended_ns": ended,
                "events": [[stamp - self.start_ns, count] for stamp, count in record.events],
                "tokens": record.received,
                **{
                    name: record.done.get(name)
                    for name in ("finish", "usage", "speculation", "timing", "timeline")
                },
            }


class ClosedLoop:
    """Clients of one running server; a context manager that closes their connection.

    ``pids``: the server's processes, whose CPU time is counted. ``is_running`` is asked when the
    server is silent.
    """

    def __init__(
        self,
        endpoint: str,
        pids: Sequence[int] = (),
        is_running: Callable[[], bool] = lambda: True,
    ) -> None:
        self._pids = pids
        self._is_running = is_running
        self._identity: tuple[Any, Any] | None = None
        self._open: dict[str, Record] = {}
        self._records: list[Record] = []
        self._heard_ns = 0
        self._handlers: Mapping[str, Callable[[dict[str, Any], int], None]] = {
            "tokens": self._tokens,
            "done": self._done,
            "error": self._error,
            "alive": self._alive,
        }
        self._asks: list[Iterator[Ask]] = []
        self._workload = Workload((), 1)
        self._timelines = False
        self._draining = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(endpoint)

    def run(
        self,
        workload: Workload,
        clients: int,
        *,
        block: int,
        ramp: float,
        seconds: float,
        timelines: bool = False,
    ) -> Window:
        """One window. Raises LoadError if the server refuses a request, ends one before its length,
        loses one, is silent or gone."""
        self._workload, self._timelines, self._draining = workload, timelines, False
        self._asks = [workload.asks(block, clients, client) for client in range(clients)]
        self._open, self._records = {}, []
        self._heard_ns = time.monotonic_ns()
        start_ns = self._heard_ns + round(ramp * _SECOND)
        end_ns = start_ns + round(seconds * _SECOND)
        for client in range(clients):
            self._begin(client)
        self._receive_until(lambda: time.monotonic_ns() >= start_ns, start_ns)
        before, before_ns = self._use(), time.monotonic_ns()
        self._receive_until(lambda: time.monotonic_ns() >= end_ns, end_ns)
        after, after_ns = self._use(), time.monotonic_ns()
        self._drain()
        length = (after_ns - before_ns) / _SECOND
        return Window(
            clients,
            start_ns,
            end_ns,
            self._records,
            (after.client - before.client) / length,
            (after.server - before.server) / length,
        )

    def _begin(self, client: int) -> None:
        ask = next(self._asks[client])
        id = str(len(self._records))
        params = SamplingParams(
            max_tokens=ask.max_tokens,
            temperature=self._workload.temperature,
            seed=ask.seed,
            ignore_eos=True,
        )
        prompt = self._workload.prompts[ask.prompt]
        frame = protocol.generate(id, prompt, params, timeline=self._timelines)
        record = self._open[id] = Record(id, client, ask, time.monotonic_ns())
        self._records.append(record)
        self._socket.send(frame)

    def _drain(self) -> None:
        self._draining = True
        for id in self._open:
            self._socket.send(protocol.encode("cancel", id=id))
        deadline = time.monotonic_ns() + round(DRAIN_SECONDS * _SECOND)
        self._receive_until(lambda: not self._open or time.monotonic_ns() >= deadline, deadline)
        if self._open:
            raise LoadError(f"cancelled requests have not ended after {DRAIN_SECONDS:g} s")

    def _receive_until(self, over: Callable[[], bool], deadline_ns: int) -> None:
        while not over():
            left = max(0, deadline_ns - time.monotonic_ns()) / _SECOND
            if not self._socket.poll(math.ceil(min(left, _LOOK_SECONDS) * 1000)):
                self._check_silence()
                continue
            while True:
                try:
                    frame = self._socket.recv(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._heard_ns = time.monotonic_ns()
                self._take(msgpack.unpackb(frame), self._heard_ns)

    def _check_silence(self) -> None:
        if not self._is_running():
            raise LoadError("the server has ended")
        silence = (time.monotonic_ns() - self._heard_ns) / _SECOND
        if self._open and silence > SILENCE_SECONDS:
            raise LoadError(f"the server has said nothing for {silence:.0f} s")

    def _take(self, message: dict[str, Any], now: int) -> None:
        handler = self._handlers.get(message["type"])
        if handler is not None:
            handler(message, now)

    def _tokens(self, message: dict[str, Any], now: int) -> None:
        record = self._open[message["id"]]
        if message["offset"] != record.received:
            raise LoadError(f"tokens {record.received} to {message['offset']} were lost")
        if message["ids"]:
            record.events.append((now, len(message["ids"])))

    def _done(self, message: dict[str, Any], now: int) -> None:
        record = self._open.pop(message["id"])
        record.ended_ns, record.done = now, message
        if self._draining:
            return
        if message["finish"] != "length" or record.received != record.ask.max_tokens:
            raise LoadError(
                f"a request ended with {message['finish']} after {record.received} of "
                f"{record.ask.max_tokens} tokens"
            )
        self._begin(record.client)

    def _error(self, message: dict[str, Any], now: int) -> None:
        raise LoadError(f"{message['code']}: {message['message']}")

    def _alive(self, message: dict[str, Any], now: int) -> None:
        identity = (message["instance"], message["connection"])
        if self._identity not in (None, identity):
            raise LoadError("the server has forgotten this connection")
        self._identity = identity

    def _use(self) -> Use:
        server = 0.0
        for pid in self._pids:
            try:
                used = psutil.Process(pid).cpu_times()
            except psutil.NoSuchProcess as error:
                raise LoadError(f"process {pid} of the server has ended") from error
            server += used.user + used.system
        return Use(time.process_time(), server)

    def __enter__(self) -> ClosedLoop:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close(linger=0)
        self._context.term()
