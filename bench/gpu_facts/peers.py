"""Second processes of a measurement, and the conversation with them: JSON over a ZeroMQ PAIR."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

COMMAND = (sys.executable, "-m", "bench.gpu_facts.peer")
"""How a peer is started; its role, endpoint and parent follow."""

ANSWER_SECONDS = 90.0
"""A peer that says nothing for so long has failed; loading torch and a model takes most of it."""


class PeerError(RuntimeError):
    """A peer has failed, ended or not answered."""


class Talk:
    """One end of a conversation."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket

    def send(self, **message: Any) -> None:
        """Say something."""
        self.socket.send_json(message)

    def receive(self, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """What the other says next. Raises PeerError if that is an error or nothing."""
        deadline = time.monotonic() + seconds
        while not self.socket.poll(200):
            if time.monotonic() > deadline:
                raise PeerError(f"no answer within {seconds:g} s")
            self._check()
        message = dict(self.socket.recv_json())  # type: ignore[arg-type]
        if "error" in message:
            raise PeerError(message["error"])
        return message

    def _check(self) -> None:
        """Raise PeerError if the other end cannot answer any more."""

    def ask(self, **message: Any) -> dict[str, Any]:
        """Say something and wait for the answer."""
        self.send(**message)
        return self.receive()


class Peer(Talk):
    """A process in a role of peer.py; a context manager that leaves nothing of it behind."""

    def __init__(self, role: str, environment: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gpu-facts-")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = self._context.socket(zmq.PAIR)
        socket.setsockopt(zmq.LINGER, 0)
        endpoint = f"ipc://{Path(self._folder.name) / 'peer'}"
        socket.bind(endpoint)
        super().__init__(socket)
        self.process = subprocess.Popen(
            [*COMMAND, role, endpoint, str(os.getpid())],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def _check(self) -> None:
        if self.process.poll() is not None and not self.socket.poll(0):
            raise PeerError(f"the peer ended with status {self.process.returncode}")

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self.process.poll() is None:
            self.send(stop=True)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.kill()
        self.process.wait()
        self.socket.close()
        self._context.term()
        self._folder.cleanup()
