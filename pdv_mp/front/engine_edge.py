"""The front's end of its edge to the worker that holds the scheduler."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import zmq

from pdv_mp.wire import engine as wire

logger = logging.getLogger(__name__)


class EngineEdge:
    """A PAIR socket, bound here. The queue is unbounded; credits bound what can be in it.

    ``peer``: name of the worker at the other end.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run_dir: Path,
        generation: int,
        peer: str,
    ) -> None:
        self.peer = peer
        self.endpoint = f"ipc://{run_dir}/engine-0"
        self.socket = context.socket(zmq.PAIR)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self.socket.setsockopt(option, 0)
        self.socket.bind(self.endpoint)
        self._generation = generation
        self.lost = False
        self.messages_sent = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.bytes_received = 0

    def send(self, message: wire.EngineMessage, encode_ns: int | None = None) -> None:
        """Encode a message and hand it to the socket. Without a peer it is dropped and the edge
        is lost: the worker is gone and its end of the socket with it."""
        if self.lost:
            return
        frame = wire.encode(message, self._generation, encode_ns)
        try:
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            logger.error("the worker's end of %s is gone", self.endpoint)
            self.lost = True
            return
        self.messages_sent += 1
        self.bytes_sent += len(frame)

    def receive(self, polled_ns: int | None = None) -> wire.EngineMessage | None:
        """The next message that has arrived, or None.

        ``polled_ns``: when the poll returned that announced it, if it is the first one since.
        Raises WireError for a damaged frame.
        """
        while True:
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            received_ns = time.monotonic_ns() if polled_ns is None else polled_ns
            self.messages_received += 1
            self.bytes_received += len(frame)
            message, generation = wire.decode(frame, received_ns)
            if generation == self._generation:
                return message
            logger.warning("dropped a message of generation %d", generation)

    def close(self) -> None:
        """Close the socket; what has not been sent is dropped."""
        self.socket.close()
