"""One end of the edge between a scheduler's worker and a lane."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import zmq

from pdv_mp.binding import bind_ipc
from pdv_mp.lanes.injected_delay import HeldFrames, receive_frame
from pdv_mp.lanes.waiting import Ready
from pdv_mp.wire import stages as wire

logger = logging.getLogger(__name__)


class LaneEdge:
    """A PAIR socket, bound by the scheduler's worker and connected by the lane.

    Its queues are unbounded and sends never block. What can be in them is bounded by slots: each is
    with one stage at a time, and there is at most one draft order of each group. A lane that is
    started again gets a new socket, named after its generation, so that nothing of the old one can
    arrive late.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run_dir: Path,
        lane: str,
        generation: int,
        *,
        bind: bool,
        held: HeldFrames | None = None,
    ) -> None:
        """``held``: what holds back frames that have arrived, where a delay is injected."""
        self.lane = lane
        self._held = held
        self.messages_sent = 0
        self.bytes_sent = 0
        self._context = context
        self._run_dir = run_dir
        self._bind = bind
        self._open(generation)

    def _open(self, generation: int) -> None:
        self._generation = generation
        self.socket = self._context.socket(zmq.PAIR)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self.socket.setsockopt(option, 0)
        path = self._run_dir / wire.lane_socket(self.lane, generation)
        if self._bind:
            bind_ipc(self.socket, path)
        else:
            self.socket.connect(f"ipc://{path}")

    def reopen(self, generation: int) -> None:
        """The lane died: wait for its next generation on a new :attr:`socket`."""
        self.socket.close()
        self._open(generation)

    def send(self, message: wire.StageMessage, encode_ns: int | None = None) -> bool:
        """Encode a message and hand it to the socket. False, and it is dropped, without a peer: the
        other process has died, and the supervisor says what follows."""
        frame = wire.encode(message, self._generation, encode_ns)
        try:
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            logger.info("nobody is at the other end of the edge to %s", self.lane)
            return False
        self.messages_sent += 1
        self.bytes_sent += len(frame)
        return True

    def receive(self) -> wire.StageMessage | None:
        """The next message that has arrived, or None. Raises WireError for a damaged one."""
        while True:
            frame = receive_frame(self.socket, self._held)
            if frame is None:
                return None
            message, generation = wire.decode(frame, time.monotonic_ns())
            if generation == self._generation:
                return message
            logger.warning("dropped a message of generation %d from %s", generation, self.lane)

    def may_have(self, ready: Ready) -> bool:
        """Whether a message can be received, if these sockets have one."""
        return self.socket in ready or self.due_ns is not None

    @property
    def due_ns(self) -> int | None:
        """When a frame that is held back will be due (monotonic), None if none is."""
        return None if self._held is None else self._held.due_ns

    def close(self) -> None:
        """Close the socket; what has not been sent is dropped."""
        self.socket.close()
