"""A child's end of the control connection to the supervisor."""

from __future__ import annotations

import os
import time
from pathlib import Path

import zmq

from pdv_mp.wire.control import (
    Abort,
    Bye,
    ChildMessage,
    ControlError,
    Drain,
    Failed,
    Hello,
    Lost,
    Ping,
    Pong,
    Progress,
    Ready,
    Received,
    Restarting,
    Stop,
    SupervisorMessage,
    decode_control,
    encode_control,
)

CONTROL_SOCKET = "control"
"""File name of the supervisor's control socket in the run directory."""

ACKNOWLEDGE_SECONDS = 5.0
"""How long the last message of a child waits for the supervisor's acknowledgement."""


def control_endpoint(run_dir: Path) -> str:
    """The ipc endpoint of the control socket in a run directory."""
    return f"ipc://{run_dir / CONTROL_SOCKET}"


class ControlClient:
    """The DEALER socket through which a child talks to the supervisor; for one thread.

    ``socket`` may be registered with a poller; when it is readable, call :meth:`receive` until it
    returns None. The constructor connects and sends :class:`Hello`.
    """

    def __init__(self, run_dir: Path, name: str) -> None:
        self.name = name
        self.ready_sent = False
        self.stop_received = False
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):
            self.socket.setsockopt(option, 0)
        self.socket.connect(control_endpoint(run_dir))
        self.send(Hello(name, os.getpid()))

    def send(self, message: ChildMessage) -> None:
        """Queues a message; it does not block, since the queue has no bound."""
        self.socket.send(encode_control(message))
        self.ready_sent = self.ready_sent or isinstance(message, Ready)

    def progress(self, text: str) -> None:
        """Tells the supervisor what the start-up is busy with, which renews its time-out."""
        self.send(Progress(self.name, text))

    def receive(self) -> SupervisorMessage | None:
        """The next message of the supervisor, or None if none has arrived; pings are answered here.

        Raises ControlError for a frame that the supervisor cannot have sent.
        """
        while True:
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            message = decode_control(frame)
            if isinstance(message, Ping):
                self.send(Pong())
                continue
            if not isinstance(message, (Drain, Abort, Restarting, Lost, Stop, Received)):
                raise ControlError(f"the supervisor sent a {type(message).__name__} message")
            self.stop_received = self.stop_received or isinstance(message, Stop)
            return message

    def finish(self, message: Bye | Failed, seconds: float = ACKNOWLEDGE_SECONDS) -> None:
        """Sends the last message, waits until it was received (at most ``seconds``), and closes."""
        self.send(message)
        deadline = time.monotonic() + seconds
        acknowledged = False
        while not acknowledged and (left := deadline - time.monotonic()) > 0:
            if self.socket.poll(int(left * 1000) + 1):
                acknowledged = isinstance(self.receive(), Received)
        self.close()

    def close(self) -> None:
        """Closes the socket; what is still queued is dropped."""
        self.socket.close(linger=0)
        self._context.term()
