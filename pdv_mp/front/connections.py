"""The clients' ROUTER socket and its connections.

A send never blocks. What a slow reader's queue in the socket does not take waits in the
connection's outbox in order, and is tried again until it has left.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import zmq

from pdv_mp.front.newcomers import Newcomers, link_number
from pdv_mp.front.outbox import FIRST_RETRY_SECONDS, Connection, Outgoing, WaitingTokens
from pdv_mp.front.unfinished import UnfinishedMessages
from pdv_mp.wire.protocol import PackedList

if TYPE_CHECKING:
    from pdv_mp.front.journal import Request

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 8 * 1024 * 1024
"""More than this waiting for one connection is a slow consumer."""

MAX_IDLE_CONNECTIONS = 4096
"""Connections without open requests that are remembered; the ROUTER does not say who left."""

UNFINISHED = 3
"""Most of a message that is not complete, in messages of the largest size. A legal one has one
frame, and libzmq ends a connection whose frame is over twice that size."""

SEND_QUEUE_MESSAGES = 100
"""Messages per connection that the socket queues before the outbox does, where they merge."""

LAST_RETRY_SECONDS = 0.1


class ClientSocket:
    """The ROUTER socket and its connections.

    A vanished host is noticed by TCP keep-alive. ZeroMQ's own heartbeats would also end the
    connection of a live reader whose queue is full, since its side then reads no heartbeats.

    ``on_gone``: a connection can no longer be sent to; its open requests are still listed.
    ``on_overflow``: too much waits for a connection; the ``tokens`` of its requests without a last
    message were dropped, so each of these must end with an ``error`` now. All other answers stay.
    If those alone are too much, the connection is given up instead: it counts as gone, and what
    its client sends next as from a new one. Both handlers run after the call that found it, from
    :meth:`settle`, so that no handler runs within another.
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
        self.unfinished = UnfinishedMessages(context, self.socket, UNFINISHED * max_message_bytes)
        self.newcomers = Newcomers(context, self.socket, self.unfinished)
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
            first, *rest = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self.unfinished.drained()
            return None
        frames = [frame.bytes for frame in rest]
        self.messages_received += 1
        self.bytes_received += sum(map(len, frames))
        routing_id, link = first.bytes, link_number(first)
        self.unfinished.delivered(rest, link)
        connection = self._connections.get(routing_id)
        if connection is not None and connection.link != link:
            self._replaced(connection)
            connection = None
        if connection is None:
            connection = Connection(routing_id, self._next_number, link)
            self._next_number += 1
            self._connections[routing_id] = connection
            self._forget_idle(connection)
        else:
            self._connections.move_to_end(routing_id)
        return connection, frames

    def _replaced(self, connection: Connection) -> None:
        """Another client has come with the routing id of one that has left, and must get nothing
        that was meant for it."""
        connection.outbox.clear()
        self._waiting.pop(connection.routing_id, None)
        del self._connections[connection.routing_id]
        connection.gone = True
        self._gone.append(connection)

    def _forget_idle(self, newest: Connection) -> None:
        """Forget the half of the idle connections that was silent for longest, and rather those
        that have shown no token than others."""
        if len(self._connections) <= MAX_IDLE_CONNECTIONS:
            return
        idle = [
            connection
            for connection in self._connections.values()
            if not connection.is_awaiting and not connection.outbox and connection is not newest
        ]
        idle.sort(key=lambda connection: connection.authenticated)
        for connection in idle[: MAX_IDLE_CONNECTIONS // 2]:
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
        self,
        request: Request,
        offset: int,
        ids: list[int],
        drafted: list[int],
        text: str,
        logprobs: PackedList | None = None,
    ) -> None:
        """Send a ``tokens`` message, merged with one of the same request that waits."""
        connection = request.connection
        if request.waiting_tokens is not None:
            growth = request.waiting_tokens.extend(ids, drafted, text, logprobs)
            self._grew(connection, growth)
            return
        item = WaitingTokens(request, offset, ids, drafted, text, logprobs)
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
                if self._connections.get(connection.routing_id) is connection:
                    connection.outbox.clear()
                    self._waiting.pop(connection.routing_id, None)
                    del self._connections[connection.routing_id]
                self._on_gone(connection)
                connection.open.clear()
            for connection in self._take(self._overflown):
                if connection.gone:
                    continue
                connection.drop_tokens()
                if connection.outbox_bytes > MAX_WAITING_BYTES:
                    self._give_up(connection)
                    continue
                if not connection.outbox:
                    self._waiting.pop(connection.routing_id, None)
                self._on_overflow(connection)

    def _give_up(self, connection: Connection) -> None:
        logger.warning(
            "connection %d is ended: it does not read, and %d bytes of answers wait for it",
            connection.number,
            connection.outbox_bytes,
        )
        connection.gone = True
        self._gone.append(connection)

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

    def end_unfinished(self, now: float) -> None:
        """End connections that fill the memory with messages without an end, when it is time."""
        self.unfinished.check(now, self.newcomers.last_number)

    def awaiting(self) -> list[Connection]:
        """Connections that have open requests or questions."""
        return [item for item in self._connections.values() if item.is_awaiting]

    @property
    def num_connections(self) -> int:
        """Connections that are remembered."""
        return len(self._connections)

    def close(self, linger_seconds: float) -> None:
        """Close the socket; the context's end waits for what it has queued at most that long."""
        self.newcomers.close()
        self.unfinished.close()
        self.socket.close(linger=int(linger_seconds * 1000))
