"""One child process of the supervisor: starting it, and what it writes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pdv_mp.process import SUPERVISED_SIGNALS
from pdv_mp.wire.control import SupervisorMessage

TAIL_LINES = 12
MAX_LINE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to start: the role's name, the command line, the environment, and the file descriptors
    that are handed down."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: Sequence[int] = ()


class Child:
    """A started process whose stdout and stderr come through one pipe.

    ``identity`` is its address on the control socket, None until it has said hello; ``pending`` is
    what it is to be told then. ``killed``: whether its end is our doing.
    To be made in the main thread only: the child asks the kernel to be killed when the thread that
    started it ends.
    """

    def __init__(self, spec: ChildSpec) -> None:
        self.name = spec.name
        self.identity: bytes | None = None
        self.ready = False
        self.killed = False
        self.pending: list[SupervisorMessage] = []
        self.exit_status: int | None = None
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._partial = b""
        # The mask is inherited: no signal meant for the supervisor's process group can hit the
        # child before it ignores them.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISED_SIGNALS)
        try:
            self._process = subprocess.Popen(
                spec.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(spec.environment),
                pass_fds=tuple(spec.inherited),
                bufsize=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        self.pid = self._process.pid
        if self._process.stdout is None:
            raise RuntimeError("subprocess.PIPE gave no pipe")
        self._pipe = self._process.stdout
        self.output_fd = self._pipe.fileno()
        os.set_blocking(self.output_fd, False)

    @property
    def alive(self) -> bool:
        """Whether its end has not been noticed yet (see :meth:`poll`)."""
        return self.exit_status is None

    def poll(self) -> bool:
        """Whether it has ended; reaps it if so."""
        if self.exit_status is None:
            self.exit_status = self._process.poll()
        return self.exit_status is not None

    def kill(self) -> None:
        """SIGKILL; no child can refuse it. Its end is still to be noticed by :meth:`poll`."""
        if self.alive and self._process.poll() is None:
            self.killed = True
            self._process.kill()

    def wait(self, seconds: float) -> None:
        """Waits for its end, at most so long; :attr:`alive` says how that went."""
        try:
            self.exit_status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def read_lines(self) -> tuple[list[str], bool]:
        """The whole lines written since the last call, and whether the pipe has been closed."""
        data, closed = self._partial, False
        try:
            while chunk := os.read(self.output_fd, 65536):
                data += chunk
            closed = True
        except BlockingIOError:
            pass
        *lines, rest = data.split(b"\n")
        if rest and (closed or len(rest) > MAX_LINE_BYTES):
            lines.append(rest)
            rest = b""
        self._partial = rest
        texts = [line[:MAX_LINE_BYTES].decode(errors="replace") for line in lines]
        self.tail.extend(texts)
        return texts, closed

    def describe_exit(self) -> str:
        """``exited with status 1`` or ``was killed by SIGKILL``."""
        status = self.exit_status
        if status is None:
            return "is running"
        if status >= 0:
            return f"exited with status {status}"
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"

    def close(self) -> None:
        """Closes the pipe."""
        self._pipe.close()
