"""Clients of both kinds that cost little themselves: HTTP over plain sockets, and ZeroMQ."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgpack
import zmq

from bench.load.errors import LoadError
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.wire import protocol

EVENT = b"data: {"
END = b"data: [DONE]"
SILENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Sent:
    """What a round of streams brought: events, the tokens asked for, and the seconds it took."""

    events: int
    tokens: int
    seconds: float


def http_request(prompt: Sequence[int], tokens: int, *, close: bool) -> bytes:
    """A request for a greedy stream."""
    fields = {"prompt": list(prompt), "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body = json.dumps({**fields, "stream": True}).encode()
    return (
        b"POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
        + (b"Connection: close\r\n" if close else b"")
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )


def connect(url: str) -> socket.socket:
    """A connection to a gateway."""
    parts = urlsplit(url)
    connection = socket.create_connection((str(parts.hostname), int(parts.port or 80)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(SILENCE_SECONDS)
    return connection


def run_streams(url: str, prompts: Sequence[Sequence[int]], tokens: int) -> Sent:
    """One stream for each prompt, all at once, read to their ends. Raises LoadError for one that
    ends in any other way, or says nothing."""
    started = time.monotonic()
    events = 0
    with selectors.DefaultSelector() as selector:
        last: dict[socket.socket, bytes] = {}
        for prompt in prompts:
            connection = connect(url)
            connection.sendall(http_request(prompt, tokens, close=True))
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
            last[connection] = b""
        try:
            while last:
                ready = selector.select(SILENCE_SECONDS)
                if not ready:
                    raise LoadError("the gateway says nothing any more")
                for key, _ in ready:
                    connection = key.fileobj  # type: ignore[assignment]
                    part = connection.recv(1 << 16)
                    if not part:
                        if END not in last[connection]:
                            raise LoadError(f"a stream ended early: {last[connection][-300:]!r}")
                        selector.unregister(connection)
                        del last[connection]
                        connection.close()
                        continue
                    # An event may come in two parts: its beginning is counted once.
                    events += (last[connection][-6:] + part).count(EVENT)
                    last[connection] = (last[connection] + part)[-400:]
        finally:
            for connection in last:
                connection.close()
    return Sent(events, tokens * len(prompts), time.monotonic() - started)


class HttpStream:
    """One connection that is kept; a context manager."""

    def __init__(self, url: str) -> None:
        self._connection = connect(url)

    def first_token_ns(self, prompt: Sequence[int], tokens: int) -> int:
        """From before the request is sent until its first event is here; then reads the rest.
        Raises LoadError for an answer that is no stream."""
        request = http_request(prompt, tokens, close=False)
        started = time.monotonic_ns()
        self._connection.sendall(request)
        found, first = b"", 0
        while END not in found or not found.endswith(b"0\r\n\r\n"):
            part = self._connection.recv(1 << 16)
            if not part:
                raise LoadError(f"the gateway answered {found[:300]!r}")
            found += part
            if not first and EVENT in found:
                first = time.monotonic_ns()
        return first - started

    def __enter__(self) -> HttpStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()


class ZmqStream:
    """The same of a DEALER socket."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self._number = 0

    def first_token_ns(self, prompt: Sequence[int], tokens: int) -> int:
        """From before the request is encoded until its first tokens are here; then reads the rest.
        Raises LoadError for an error or silence."""
        self._number += 1
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        started = time.monotonic_ns()
        self._socket.send(protocol.generate(str(self._number), list(prompt), params))
        first = 0
        while True:
            if not self._socket.poll(int(SILENCE_SECONDS * 1000)):
                raise LoadError("the server says nothing any more")
            message = msgpack.unpackb(self._socket.recv())
            if message["type"] == "error":
                raise LoadError(f"the server answered {message}")
            if message["type"] == "tokens" and not first:
                first = time.monotonic_ns()
            if message["type"] == "done":
                return first - started

    def __enter__(self) -> ZmqStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close(linger=0)
        self._context.term()
