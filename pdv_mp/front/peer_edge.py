"""The front's end of an edge to a process of the server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import zmq

from pdv_mp.binding import bind_ipc
from pdv_mp.lanes.injected_delay import HeldFrames, receive_frame
from pdv_mp.wire.frames import FrameCodec
from pdv_mp.workers.flight_record import record_path, take_record

logger = logging.getLogger(__name__)

Message = TypeVar("Message")


class PeerEdge(Generic[Message]):
    """A PAIR socket, bound here. The queue is unbounded; credits bound what can be in it.

    ``peer``: name of the process at the other end. ``socket_name``: file name of the socket for a
    generation of it. ``held``: what holds back frames that have arrived, where a delay is injected.
    ``lost``: the process is not there; what is sent is dropped. One that is started again gets a
    socket of its own, see :meth:`reopen`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run_dir: Path,
        generation: int,
        peer: str,
        codec: FrameCodec[Message],
        socket_name: Callable[[int], str],
        held: HeldFrames | None = None,
    ) -> None:
        self.peer = peer
        self._context = context
        self._run_dir = run_dir
        self._generation = generation
        self._codec = codec
        self._socket_name = socket_name
        self._held = held
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
        path = self._run_dir / self._socket_name(self._generation)
        self.endpoint = bind_ipc(self.socket, path)

    def reopen(self, generation: int) -> frozenset[int]:
        """The process died: wait for its next generation on a new :attr:`socket`. Returns what it
        was working on, by key."""
        batch = take_record(record_path(self._run_dir, self.peer, self._generation))
        self.socket.close()
        self._generation = generation
        self._bind()
        self.lost = False
        return batch

    def send(self, message: Message, encode_ns: int | None = None) -> None:
        """Encode a message and hand it to the socket. Without a peer it is dropped and the edge
        is lost: the process is gone and its end of the socket with it. The supervisor says what
        follows."""
        if self.lost:
            return
        frame = self._codec.encode(message, self._generation, encode_ns)
        try:
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            logger.info("the other end of %s is gone", self.endpoint)
            self.lost = True
            return
        self.messages_sent += 1
        self.bytes_sent += len(frame)

    def receive(self, polled_ns: int | None = None) -> Message | None:
        """The next message that has arrived, or None.

        ``polled_ns``: when the poll returned that announced it, if it is the first one since. One
        that was held back is received when its time has come and it is asked for.
        Raises WireError for a damaged frame.
        """
        while True:
            frame = receive_frame(self.socket, self._held)
            if frame is None:
                return None
            if polled_ns is None or self._held is not None:
                received_ns = time.monotonic_ns()
            else:
                received_ns = polled_ns
            self.messages_received += 1
            self.bytes_received += len(frame)
            message, generation = self._codec.decode(frame, received_ns)
            if generation == self._generation:
                return message
            logger.warning("dropped a message of generation %d", generation)

    @property
    def due_ns(self) -> int | None:
        """When a frame that is held back will be due (monotonic), None if none is."""
        return None if self._held is None else self._held.due_ns

    def close(self) -> None:
        """Close the socket; what has not been sent is dropped."""
        self.socket.close()
