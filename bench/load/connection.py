"""One connection that serves many clients.

All clients share one socket and one thread, so that on a small machine they leave the cores to the
server; how much they take is measured. Everything that arrives is stamped when it is taken from the
socket.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgpack
import zmq

from bench.load.errors import LoadError
from pdv_mp.wire import protocol

SILENCE_SECONDS = 5.0
"""A server with requests open says something every second."""

DRAIN_SECONDS = 20.0
"""How long cancelled requests may take to end."""

SECOND = 1_000_000_000
_LOOK_SECONDS = 0.5

Message = dict[str, Any]


class Connection:
    """A DEALER socket to a running server; a context manager that closes it.

    ``is_running`` is asked when the server is silent.
    """

    def __init__(self, endpoint: str, is_running: Callable[[], bool] = lambda: True) -> None:
        self._is_running = is_running
        self._identity: tuple[Any, Any] | None = None
        self._heard_ns = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.connect(endpoint)

    def send(self, frame: bytes) -> int:
        """Sends a message; returns when, in ns of ``time.monotonic_ns``."""
        sent_ns = time.monotonic_ns()
        self._socket.send(frame)
        return sent_ns

    def cancel(self, ids: Iterable[str]) -> None:
        """Asks the server to end these requests."""
        for id in ids:
            self._socket.send(protocol.encode("cancel", id=id))

    def begin(self) -> None:
        """From now on the server's silence counts."""
        self._heard_ns = time.monotonic_ns()

    def wait(self, until_ns: int, waiting: Callable[[], bool]) -> None:
        """Returns when a message is there, or at that time.

        ``waiting``: whether requests are open. Raises LoadError if the server is silent then, or
        has ended.
        """
        while not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            left = (until_ns - time.monotonic_ns()) / SECOND
            if left <= 0:
                return
            # Unlike zmq's own poll, whose unit is the millisecond, this ends when it is to.
            ready, _, _ = select.select([self._socket], [], [], min(left, _LOOK_SECONDS))
            if not ready and left > _LOOK_SECONDS:
                self._check_silence(waiting())

    def receive(self) -> tuple[Message, int] | None:
        """The next message that is there, and when it was taken; None if there is none."""
        try:
            frame = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        self._heard_ns = time.monotonic_ns()
        message: Message = msgpack.unpackb(frame)
        if message["type"] == "alive":
            self._check_identity(message)
        return message, self._heard_ns

    def _check_silence(self, waiting: bool) -> None:
        if not self._is_running():
            raise LoadError("the server has ended")
        silence = (time.monotonic_ns() - self._heard_ns) / SECOND
        if waiting and silence > SILENCE_SECONDS:
            raise LoadError(f"the server has said nothing for {silence:.0f} s")

    def _check_identity(self, message: Message) -> None:
        identity = (message["instance"], message["connection"])
        if self._identity not in (None, identity):
            raise LoadError("the server has forgotten this connection")
        self._identity = identity

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close(linger=0)
        self._context.term()
