"""The worker's end of its edge to the front."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import zmq

from pdv_mp.config import HandoffOptions
from pdv_mp.lanes.injected_delay import HeldFrames, receive_frame
from pdv_mp.lanes.waiting import Waiting
from pdv_mp.wire import engine as wire

logger = logging.getLogger(__name__)


class FrontEdge:
    """A PAIR socket, which the worker's loop sends through and a thread receives from.

    The thread takes in what comes while the loop computes: torch and our kernels release the
    interpreter's lock. So a request waits for its worker and not in a socket. What it has taken in
    belongs to the loop. The socket belongs to whoever holds ``_lock``.

    Sends never block: the queue is unbounded, and what can wait in it is bounded by the credits
    that the front has been given. ``fd`` becomes readable when something has come. The thread
    sleeps until then whatever ``--wait`` says: else it would take a core from whoever computes.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run_dir: Path,
        generation: int,
        replica: int,
        held: HeldFrames | None = None,
    ) -> None:
        """``held``: what holds back frames that have arrived, where a delay is injected."""
        self._held = held
        self._socket = context.socket(zmq.PAIR)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self._socket.setsockopt(option, 0)
        self._socket.connect(f"ipc://{run_dir / wire.engine_socket(generation, replica)}")
        self._readable = int(self._socket.getsockopt(zmq.FD))
        self._generation = generation
        self._lock = threading.Lock()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._look = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._arrived: deque[wire.EngineMessage] = deque()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="front-edge")
        self._receiving: Future[None] | None = None
        self._is_closing = False

    # ------------------------------------------------------------------ the worker's loop

    def start(self) -> None:
        """Begin to take in what comes."""
        self._receiving = self._executor.submit(self._take_in_all)
        self._receiving.add_done_callback(lambda _: os.eventfd_write(self.fd, 1))

    def send(self, message: wire.EngineMessage, encode_ns: int | None = None) -> None:
        """Encode a message and hand it to the socket."""
        with self._lock:
            self._socket.send(wire.encode(message, self._generation, encode_ns), zmq.NOBLOCK)
            # Its descriptor tells of an arrival once, which may just have been overheard here.
            has_come = int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        if has_come:
            os.eventfd_write(self._look, 1)

    def receive(self) -> wire.EngineMessage | None:
        """The next message that has arrived, or None. Raises what ended the thread: WireError for a
        damaged message."""
        if self._arrived:
            return self._arrived.popleft()
        if self._receiving is not None and self._receiving.done() and not self._arrived:
            self._receiving.result()
        return None

    def noticed(self) -> None:
        """``fd`` was readable; it becomes so again when more has come."""
        os.eventfd_read(self.fd)

    def close(self) -> None:
        """End the thread and close the socket; what has not been sent is dropped."""
        self._is_closing = True
        os.eventfd_write(self._look, 1)
        self._executor.shutdown()
        self._socket.close()
        os.close(self.fd)
        os.close(self._look)

    # ------------------------------------------------------------------ the thread

    def _take_in_all(self) -> None:
        waiting = Waiting(HandoffOptions())
        waiting.register(self._readable)
        waiting.register(self._look)
        try:
            while not self._is_closing:
                self._take_in()
                if self._look in waiting.wait(None if self._held is None else self._held.due_ns):
                    os.eventfd_read(self._look)
        finally:
            waiting.close()

    def _take_in(self) -> None:
        """Take in all that has arrived, which makes the descriptor tell of the next arrival."""
        while True:
            with self._lock:
                frame = receive_frame(self._socket, self._held)
            if frame is None:
                return
            message, generation = wire.decode(frame, time.monotonic_ns())
            if generation != self._generation:
                logger.warning("dropped a message of generation %d", generation)
                continue
            self._arrived.append(message)
            os.eventfd_write(self.fd, 1)
