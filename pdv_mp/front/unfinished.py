"""Ends TCP connections that would fill the memory with a message that has no end.

libzmq bounds a frame but not the number of frames of a message, and shows nothing of a message
before its last frame. What it holds for a connection follows from what the kernel counts: the bytes
received (RFC 4898, tcpEStatsAppHCThruOctetsReceived), without those that still wait in the kernel,
minus those of the messages that were delivered here. Complete messages that wait to be delivered
are in that difference too, so it is judged only after they must have been delivered: when the
clients' socket has been empty since the bytes were counted, or when all other connections had their
turn and this one delivered nothing.

A Unix socket has no such counter. Only processes of the server's own user can connect to ours.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import struct
import termios
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

logger = logging.getLogger(__name__)

CHECK_SECONDS = 0.25
SECONDS_PER_CONNECTION = 0.001
"""How often all TCP connections are looked at, while there are any: each costs some 6 µs."""

SUSPECTED_SECONDS = 0.02
"""How soon the next time comes when one of them holds too much but may have been busy."""

HEARTBEAT_BYTES_PER_SECOND = 16
"""What a connection may send besides messages: libzmq's PING has 9 bytes."""

_MONITOR_ENDPOINT = "inproc://client-connections"
_BYTES_RECEIVED = struct.Struct("=128xQ")
"""tcpi_bytes_received in struct tcp_info of linux/tcp.h, there since Linux 4.1."""

_SO_DOMAIN = 39
_SO_COOKIE = 57
_COOKIE = struct.Struct("=Q")
_COUNT = struct.Struct("=i")
_AT_ONCE = struct.pack("=ii", 1, 0)
"""A socket with this answers what still comes, after libzmq has closed it, with a reset."""

_SHORT_FRAME = 255
"""Most bytes of a frame whose header has 2 bytes; that of a longer one has 9."""


@dataclass(slots=True)
class _Watched:
    """One TCP connection.

    ``cookie``: the kernel's number of its socket, which no other socket ever has; libzmq may use
    its descriptor again. ``links_before``: numbers of :class:`Newcomers` up to this one belong to
    connections that had the descriptor before. ``delivered``: bytes of its messages. ``taken``:
    bytes that libzmq had read when they were last counted; then ``drains``, ``messages`` and
    ``delivered_then`` were as they are here.
    """

    cookie: int
    links_before: int
    since: float
    delivered: int = 0
    taken: int = 0
    drains: int = 0
    messages: int = 0
    delivered_then: int = 0


class UnfinishedMessages:
    """Watches the connections of the clients' socket ``guarded``; for the thread that owns it.

    ``socket`` is readable when there are new ones. ``limit_bytes``: most that libzmq may hold of a
    message that is not complete. Create it before ``guarded`` is bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        guarded: zmq.Socket[Any],
        limit_bytes: int,
    ) -> None:
        self._guarded = guarded
        self._limit = limit_bytes
        guarded.monitor(_MONITOR_ENDPOINT, zmq.EVENT_ACCEPTED)
        self.socket = context.socket(zmq.PAIR)
        self.socket.setsockopt(zmq.RCVHWM, 0)  # or libzmq's thread would wait for us
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(_MONITOR_ENDPOINT)
        self._watched: dict[int, _Watched] = {}
        self._next_check: float | None = None
        self._drains = 0
        self._messages = 0

    def note_accepted(self, last_link: int) -> None:
        """Watch those that were accepted since the last call. Their numbers, which they are given
        later, are above ``last_link``."""
        while True:
            try:
                event = parse_monitor_message(self.socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            self._watched.pop(event["value"], None)
            connection = _connection(event["value"])
            if connection is None:
                continue
            now = time.monotonic()
            with connection:
                self._watched[event["value"]] = _Watched(_cookie(connection), last_link, now)
            if self._next_check is None:
                self._next_check = now + CHECK_SECONDS

    def drained(self) -> None:
        """All complete messages have been delivered."""
        self._drains += 1

    def delivered(self, frames: list[zmq.Frame], link: int) -> None:
        """A message of the connection with this number was delivered."""
        self._messages += 1
        watched = self._watched.get(int(frames[0].get(zmq.SRCFD)))
        if watched is not None and link > watched.links_before:
            sizes = (len(frame) for frame in frames)
            watched.delivered += sum(size + (2 if size <= _SHORT_FRAME else 9) for size in sizes)

    def next_check(self) -> float | None:
        """When :meth:`check` is due (``time.monotonic``); None while there is nothing to watch."""
        return self._next_check

    def check(self, now: float, last_link: int) -> None:
        """End the connections for which libzmq holds too much, if it is time to look."""
        if self._next_check is None or now < self._next_check:
            return
        self.note_accepted(last_link)
        suspected = False
        for descriptor, watched in list(self._watched.items()):
            connection = _connection(descriptor)
            if connection is None:
                del self._watched[descriptor]
                continue
            with connection:
                if _cookie(connection) != watched.cookie:
                    del self._watched[descriptor]
                    continue
                suspected |= self._judge(connection, watched, now)
        seconds = max(CHECK_SECONDS, SECONDS_PER_CONNECTION * len(self._watched))
        if suspected:
            seconds = SUSPECTED_SECONDS
        self._next_check = now + seconds if self._watched else None

    def _judge(self, connection: socket.socket, watched: _Watched, now: float) -> bool:
        """Whether to look again soon."""
        allowed = self._limit + watched.delivered
        allowed += int(HEARTBEAT_BYTES_PER_SECOND * (now - watched.since))
        had_its_turn = (
            watched.delivered == watched.delivered_then
            and self._messages - watched.messages > len(self._watched)
        )
        if watched.drains != self._drains or had_its_turn:
            if watched.taken > allowed:
                logger.warning(
                    "a client's connection is ended: it sent %d bytes of a message without an end",
                    watched.taken - watched.delivered,
                )
                with suppress(OSError):  # it has ended by itself
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                    connection.shutdown(socket.SHUT_RDWR)
                return False
            watched.taken = _taken(connection)
            watched.drains = self._drains
            watched.messages = self._messages
            watched.delivered_then = watched.delivered
        return watched.taken > allowed

    def close(self) -> None:
        """Stop watching."""
        self._guarded.disable_monitor()
        self.socket.close()


def _connection(descriptor: int) -> socket.socket | None:
    """Another descriptor of a TCP connection; None if this is not one, because libzmq has closed
    it."""
    try:
        connection = socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        domain = connection.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN)
    except OSError:
        domain = None
    if domain in (socket.AF_INET, socket.AF_INET6):
        return connection
    connection.close()
    return None


def _cookie(connection: socket.socket) -> int:
    data = connection.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE.size)
    number: int = _COOKIE.unpack(data)[0]
    return number


def _taken(connection: socket.socket) -> int:
    """How many bytes the process has read, or less if it is reading now."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    if len(info) < _BYTES_RECEIVED.size:  # a kernel that does not count them
        return 0
    received: int = _BYTES_RECEIVED.unpack(info)[0]
    waiting = fcntl.ioctl(connection, termios.FIONREAD, bytes(_COUNT.size))
    return received - int(_COUNT.unpack(waiting)[0])
