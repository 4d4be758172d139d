"""The front's end of its edge to a worker that holds a scheduler."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import zmq

from pdv_mp.binding import bind_ipc
from pdv_mp.flight_record import record_path, take_record
from pdv_mp.wire import engine as wire

logger = logging.getLogger(__name__)


class EngineEdge:
    """A PAIR socket, bound here. The queue is unbounded; credits bound what can be in it.

    ``peer``: name of the worker at the other end, the one with the scheduler of ``replica``.
    ``lost``: it is not there; what is sent is dropped. A worker that is started again gets a socket
    of its own, see :meth:`reopen`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run_dir: Path,
        generation: int,
        peer: str,
        replica: int = 0,
    ) -> None:
        self.peer = peer
        self.replica = replica
        self._context = context
        self._run_dir = run_dir
        self._generation = generation
        self._bind()
        self.lost = False
        self.messages_sent = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.bytes_received = 0

    def _bind(self) -> None:
        self.socket = self._context.socket(zmq.PAIR)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self.socket.setsockopt(option, 0)
        path = self._run_dir / wire.engine_socket(self._generation, self.replica)
        self.endpoint = bind_ipc(self.socket, path)

    def reopen(self, generation: int) -> frozenset[int]:
        """The worker died: wait for its next generation on a new :attr:`socket`. Returns the
        requests that it was working on, by key."""
        batch = take_record(record_path(self._run_dir, self.peer, self._generation))
        self.socket.close()
        self._generation = generation
        self._bind()
        self.lost = False
        return batch

    def send(self, message: wire.EngineMessage, encode_ns: int | None = None) -> None:
        """Encode a message and hand it to the socket. Without a peer it is dropped and the edge
        is lost: the worker is gone and its end of the socket with it. The supervisor says what
        follows."""
        if self.lost:
            return
        frame = wire.encode(message, self._generation, encode_ns)
        try:
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            logger.info("the worker's end of %s is gone", self.endpoint)
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
