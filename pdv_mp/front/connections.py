"""The clients' ROUTER socket: connections, and an outbox for each that reads slowly.

A send never blocks. What a slow reader's queue in the socket does not take waits in the
connection's outbox in order; ``tokens`` of one request that wait are merged. Each message is
encoded once, at its first attempt, so that ``seq`` and time stamps are those of the sending.
"""

from __future__ import annotations

import errno
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import zmq

from pdv_mp.wire import protocol

if TYPE_CHECKING:
    from pdv_mp.front.journal import Request

MAX_WAITING_BYTES = 8 * 1024 * 1024
"""More than this waiting for one connection is a slow consumer."""

MAX_IDLE_CONNECTIONS = 4096
"""Connections without open requests that are remembered; the ROUTER does not say who left."""

SEND_QUEUE_MESSAGES = 100
"""Messages per connection that the socket queues before the outbox does, where they merge."""

FIRST_RETRY_SECONDS = 0.005
LAST_RETRY_SECONDS = 0.1
_MESSAGE_OVERHEAD = 96
_BYTES_PER_ID = 6


class Outgoing(Protocol):
    """A message to a client. ``size`` estimates its bytes before it is encoded."""

    size: int

    def encode(self) -> bytes:
        """The frame; called once, when it is about to be sent."""

    def sent(self) -> None:
        """Called when the socket has taken the frame."""


class Reply:
    """A message that is encoded already and has no consequences."""

    __slots__ = ("_frame", "size")

    def __init__(self, frame: bytes) -> None:
        self._frame = frame
        self.size = len(frame)

    def encode(self) -> bytes:
        return self._frame

    def sent(self) -> None:
        pass


class LastMessage:
    """A request's ``done`` or ``error``: when it is sent, the id is free again."""

    __slots__ = ("_build", "_request", "size")

    def __init__(self, request: Request, build: Callable[[], bytes], size: int) -> None:
        self._request = request
        self._build = build
        self.size = size + _MESSAGE_OVERHEAD

    def encode(self) -> bytes:
        return self._build()

    def sent(self) -> None:
        del self._request.connection.open[self._request.id]


class WaitingTokens:
    """One ``tokens`` message, which grows for as long as it is not encoded."""

    __slots__ = ("_drafted", "_ids", "_offset", "_request", "_texts", "size")

    def __init__(
        self, request: Request, offset: int, ids: list[int], drafted: list[int], text: str
    ) -> None:
        self._request = request
        self._offset = offset
        self._ids = ids
        self._drafted = drafted
        self._texts = [text]
        self.size = _MESSAGE_OVERHEAD + _size(ids, text)

    def extend(self, ids: list[int], drafted: list[int], text: str) -> int:
        """Merge what came after. Returns by how many bytes the message grew."""
        self._ids = self._ids + ids
        self._drafted = self._drafted + drafted
        self._texts.append(text)
        growth = _size(ids, text)
        self.size += growth
        return growth

    def encode(self) -> bytes:
        request = self._request
        request.waiting_tokens = None
        seq = request.next_seq
        request.next_seq += 1
        return protocol.tokens(
            request.id, seq, self._offset, self._ids, self._drafted, "".join(self._texts)
        )

    def sent(self) -> None:
        pass


def _size(ids: list[int], text: str) -> int:
    return _BYTES_PER_ID * len(ids) + len(text.encode())


class Connection:
    """One client. ``open``: requests whose last message has not been sent, by the client's id."""

    __slots__ = (
        "gone",
        "last_sent_ns",
        "number",
        "open",
        "outbox",
        "outbox_bytes",
        "retry_at",
        "retry_seconds",
        "routing_id",
    )

    def __init__(self, routing_id: bytes, number: int) -> None:
        self.routing_id = routing_id
        self.number = number
        self.open: dict[str, Request] = {}
        self.outbox: deque[tuple[Outgoing, bytes | None]] = deque()
        self.outbox_bytes = 0
        self.last_sent_ns = 0
        self.retry_at = 0.0
        self.retry_seconds = FIRST_RETRY_SECONDS
        self.gone = False


class ClientSocket:
    """The ROUTER socket and its connections.

    A vanished host is noticed by TCP keep-alive. ZeroMQ's own heartbeats would also end the
    connection of a live reader whose queue is full, since its side then reads no heartbeats.

    ``on_gone``: a connection can no longer be sent to; its open requests are still listed.
    ``on_overflow``: too much waits for a connection; its outbox was dropped. Both run after the
    call that found it, from :meth:`settle`, so that no handler runs within another.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        max_message_bytes: int,
        on_gone: Callable[[Connection], None],
        on_overflow: Callable[[Connection], None],
    ) -> None:
        self.socket = context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, 2 * max_message_bytes),
            (zmq.SNDHWM, SEND_QUEUE_MESSAGES),
            (zmq.RCVHWM, SEND_QUEUE_MESSAGES),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 5),
            (zmq.TCP_KEEPALIVE_INTVL, 1),
            (zmq.TCP_KEEPALIVE_CNT, 5),
        ):
            self.socket.setsockopt(option, value)
        self._on_gone = on_gone
        self._on_overflow = on_overflow
        self._connections: OrderedDict[bytes, Connection] = OrderedDict()
        self._next_number = 1
        self._waiting: dict[bytes, Connection] = {}
        self._gone: list[Connection] = []
        self._overflown: list[Connection] = []
        self.messages_received = 0
        self.bytes_received = 0
        self.messages_sent = 0
        self.bytes_sent = 0

    def receive(self) -> tuple[Connection, list[bytes]] | None:
        """The next message that has arrived: its connection and frames. None if there is none."""
        try:
            routing_id, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        self.messages_received += 1
        self.bytes_received += sum(map(len, frames))
        connection = self._connections.get(routing_id)
        if connection is None:
            connection = Connection(routing_id, self._next_number)
            self._next_number += 1
            self._connections[routing_id] = connection
            self._forget_idle()
        else:
            self._connections.move_to_end(routing_id)
        return connection, frames

    def _forget_idle(self) -> None:
        if len(self._connections) <= MAX_IDLE_CONNECTIONS:
            return
        for connection in list(self._connections.values())[: MAX_IDLE_CONNECTIONS // 2]:
            if not connection.open and not connection.outbox:
                del self._connections[connection.routing_id]

    def send(self, connection: Connection, item: Outgoing) -> None:
        """Send a message, or let it wait behind those that wait already."""
        if connection.gone:
            return
        frame = None
        if not connection.outbox:
            frame = item.encode()
            if self._try(connection, frame):
                item.sent()
                return
            connection.retry_seconds = FIRST_RETRY_SECONDS
            connection.retry_at = time.monotonic() + FIRST_RETRY_SECONDS
            self._waiting[connection.routing_id] = connection
        connection.outbox.append((item, frame))
        self._grew(connection, item.size)

    def send_tokens(
        self, request: Request, offset: int, ids: list[int], drafted: list[int], text: str
    ) -> None:
        """Send a ``tokens`` message, merged with one of the same request that waits."""
        connection = request.connection
        if request.waiting_tokens is not None:
            self._grew(connection, request.waiting_tokens.extend(ids, drafted, text))
            return
        item = WaitingTokens(request, offset, ids, drafted, text)
        if connection.outbox:
            request.waiting_tokens = item
        self.send(connection, item)

    def _grew(self, connection: Connection, size: int) -> None:
        before = connection.outbox_bytes
        connection.outbox_bytes += size
        if before <= MAX_WAITING_BYTES < connection.outbox_bytes:
            self._overflown.append(connection)

    def _try(self, connection: Connection, frame: bytes) -> bool:
        try:
            self.socket.send_multipart((connection.routing_id, frame), zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            connection.gone = True
            self._gone.append(connection)
            return False
        connection.last_sent_ns = time.monotonic_ns()
        self.messages_sent += 1
        self.bytes_sent += len(frame)
        return True

    def settle(self) -> None:
        """Report connections that went or overflowed. Call it once per turn of the loop."""
        while self._gone or self._overflown:
            for connection in self._take(self._gone):
                connection.outbox.clear()
                self._waiting.pop(connection.routing_id, None)
                self._connections.pop(connection.routing_id, None)
                self._on_gone(connection)
                connection.open.clear()
            for connection in self._take(self._overflown):
                if connection.gone:
                    continue
                for request in connection.open.values():
                    request.waiting_tokens = None
                connection.outbox.clear()
                connection.outbox_bytes = 0
                self._waiting.pop(connection.routing_id, None)
                self._on_overflow(connection)

    @staticmethod
    def _take(found: list[Connection]) -> list[Connection]:
        taken = found[:]
        found.clear()
        return taken

    def next_retry(self) -> float | None:
        """When :meth:`retry` has work (``time.monotonic``), or None while nothing waits."""
        return min((item.retry_at for item in self._waiting.values()), default=None)

    def retry(self, now: float) -> None:
        """Send what waits and may be sent again by now."""
        for connection in [item for item in self._waiting.values() if item.retry_at <= now]:
            progress = self._drain(connection)
            if not connection.outbox or connection.gone:
                self._waiting.pop(connection.routing_id, None)
                continue
            seconds = FIRST_RETRY_SECONDS if progress else 2 * connection.retry_seconds
            connection.retry_seconds = min(seconds, LAST_RETRY_SECONDS)
            connection.retry_at = now + connection.retry_seconds

    def _drain(self, connection: Connection) -> bool:
        progress = False
        while connection.outbox:
            item, frame = connection.outbox[0]
            if frame is None:
                frame = item.encode()
                connection.outbox[0] = (item, frame)
            if not self._try(connection, frame):
                break
            connection.outbox.popleft()
            connection.outbox_bytes -= item.size
            item.sent()
            progress = True
        return progress

    def with_open_requests(self) -> list[Connection]:
        """Connections that have open requests."""
        return [item for item in self._connections.values() if item.open]

    @property
    def num_connections(self) -> int:
        """Connections that are remembered."""
        return len(self._connections)

    @property
    def has_waiting(self) -> bool:
        """Whether any connection's outbox holds a message."""
        return bool(self._waiting)

    def close(self, linger_seconds: float) -> None:
        """Close the socket; the context's end waits for what it has queued at most that long."""
        self.socket.close(linger=int(linger_seconds * 1000))
