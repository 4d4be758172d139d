"""The processes of a server by name, and the socket over which they talk to the supervisor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import zmq

from launcher.child import Child, ChildSpec
from pdv_mp.binding import bind_ipc
from pdv_mp.config import ConfigError
from pdv_mp.control import CONTROL_SOCKET
from pdv_mp.wire.control import (
    ControlError,
    ControlMessage,
    Hello,
    SupervisorMessage,
    decode_control,
    encode_control,
)

MAX_CONTROL_BYTES = 1 << 20


class Processes:
    """The children, at most one at a time in each role, and their control socket.

    Iterating gives the children in the order of ``names``. ``specify`` says what to start for a
    name, given the generation that each process has. ``report`` is given each line of output.
    Raises ConfigError if the socket cannot be bound.
    """

    def __init__(
        self,
        run_dir: Path,
        names: Sequence[str],
        specify: Callable[[str, Mapping[str, int]], ChildSpec],
        report: Callable[[str], None],
    ) -> None:
        self.generations = dict.fromkeys(names, 0)
        self.poller = zmq.Poller()
        self._specify = specify
        self._report = report
        self._children: dict[str, Child] = {}
        self._gone: set[bytes] = set()
        self._context = zmq.Context()
        self._control = self._context.socket(zmq.ROUTER)
        for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):
            self._control.setsockopt(option, 0)
        self._control.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._control.setsockopt(zmq.MAXMSGSIZE, MAX_CONTROL_BYTES)
        try:
            bind_ipc(self._control, run_dir / CONTROL_SOCKET)
        except BaseException as error:
            self.close()
            if isinstance(error, zmq.ZMQError):
                reason = (error.strerror or str(error)).lower()
                raise ConfigError(
                    f"cannot make a socket in {run_dir}: {reason}; set XDG_RUNTIME_DIR to a folder "
                    "on a local file system"
                ) from error
            raise
        self.poller.register(self._control, zmq.POLLIN)

    def __iter__(self) -> Iterator[Child]:
        return iter([self._children[name] for name in self.generations if name in self._children])

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {child.name: child.pid for child in self}

    def start(self, name: str) -> None:
        """Starts a process in a role, in the place of the one that had it. Raises OSError."""
        child = Child(self._specify(name, dict(self.generations)))
        previous = self._children.get(name)
        if previous is not None:
            if previous.output_fd in self.poller:  # something that it started still writes
                self.poller.unregister(previous.output_fd)
            previous.close()
            if previous.identity is not None:
                self._gone.add(previous.identity)
        self._children[name] = child
        self.poller.register(child.output_fd, zmq.POLLIN)

    def receive(self) -> tuple[Child, ControlMessage] | None:
        """The next message that has arrived, with its sender; None if there is none.

        Raises ControlError for one that is damaged or from a stranger.
        """
        while True:
            try:
                identity, *frames = self._control.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            if identity in self._gone:  # last words of one that has a successor
                continue
            if len(frames) != 1:
                raise ControlError(f"{len(frames)} frames instead of one")
            message = decode_control(frames[0])
            if isinstance(message, Hello):
                return self._greet(identity, message), message
            child = next((child for child in self if child.identity == identity), None)
            if child is None:
                raise ControlError(f"{type(message).__name__} from a process that said no hello")
            return child, message

    def _greet(self, identity: bytes, hello: Hello) -> Child:
        child = self._children.get(hello.name)
        if child is None or child.pid != hello.pid:
            raise ControlError(f"process {hello.pid} is not our {hello.name!r}")
        child.identity = identity
        for message in child.pending:
            self.send(child, message)
        child.pending.clear()
        return child

    def send(self, child: Child, message: SupervisorMessage) -> None:
        """Sends a message, now or as soon as the process has said hello."""
        if child.identity is None:
            child.pending.append(message)
            return
        try:
            self._control.send_multipart((child.identity, encode_control(message)), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # It has closed its socket: its end is on its way and will be dealt with there.
            if error.errno != zmq.EHOSTUNREACH:
                raise

    def forward_output(self, child: Child) -> None:
        """Reports what a process has written since the last time."""
        if child.output_fd not in self.poller:
            return
        lines, closed = child.read_lines()
        for line in lines:
            self._report(f"[{child.name}] {line}")
        if closed:
            self.poller.unregister(child.output_fd)

    def kill_all(self, seconds: float) -> list[Child]:
        """Kills what is alive and waits, at most so long, until it is gone; returns what is not."""
        for child in self:
            child.kill()
        deadline = time.monotonic() + seconds
        for child in self:
            child.wait(max(0.0, deadline - time.monotonic()))
            self.forward_output(child)
        return [child for child in self if child.alive]

    def close(self) -> None:
        """Closes the socket and the pipes."""
        for child in self:
            child.close()
        self._control.close(linger=0)
        self._context.term()
