"""A peer's process: started, asked over its pipe, killed with all that it started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import psutil

from bench.peers import programs
from bench.peers.errors import PeerError
from bench.peers.programs.peer import Setting

START = Path(programs.__path__[0]) / "start.py"
END_SECONDS = 20.0
_LOG_BYTES = 4000


class Generated(msgspec.Struct, frozen=True):
    """A program's answer. ``seconds``: wall time from all prompts to all tokens."""

    seconds: float
    ids: list[list[int]]
    tokens: int | None = None
    speculation: dict[str, int] | None = None


class _Ready(msgspec.Struct, frozen=True):
    ready: bool
    version: str | None = None


class _Failure(msgspec.Struct, frozen=True):
    error: str | None = None


def program_command(python: str, program: str) -> list[str]:
    """Runs the module of that name among :mod:`bench.peers.programs`."""
    return [python, str(START), program, str(os.getpid())]


class Engine:
    """One mode of one peer, resident. Methods raise PeerError when it fails; it is dead then.

    ``command``: a program that speaks the lines of :mod:`bench.peers.programs.serving`; ``log``:
    what it prints goes there.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self.log = log
        self.version: str | None = None
        self._rest = b""
        with log.open("wb") as file:
            try:
                self._process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    env={**os.environ, **variables},
                    start_new_session=True,
                )
            except OSError as error:
                raise PeerError(f"cannot be started: {error}") from error

    @property
    def pid(self) -> int:
        """Of the program."""
        return self._process.pid

    def load(self, setting: Setting, seconds: float) -> None:
        """Waits until it can generate."""
        self.version = self._ask({"setting": asdict(setting)}, _Ready, seconds).version

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int, seconds: float) -> Generated:
        """So many new tokens for every prompt; it may take so many seconds."""
        found: Generated = self._ask({"prompts": prompts, "tokens": tokens}, Generated, seconds)
        return found

    def cpu_seconds(self) -> float:
        """Of the program and its children so far; 0 once it has ended."""
        total = 0.0
        with contextlib.suppress(psutil.Error):
            program = psutil.Process(self.pid)
            for process in (program, *program.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    total += times.user + times.system
        return total

    def hang_up(self) -> None:
        """Close its pipe, so that it ends while others are closed; :meth:`close` is still due."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def close(self) -> None:
        """End it: by the end of its pipe, else by force, children included."""
        process = self._process
        children: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.pid).children(recursive=True)
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS if self._is_well() else 0)
        self._kill(children)
        if process.stdout is not None:
            process.stdout.close()

    def _kill(self, children: Sequence[psutil.Process]) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        self._process.wait()

    def _is_well(self) -> bool:
        return self.version is not None or self._process.poll() is not None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, question: Mapping[str, Any], kind: Any, seconds: float) -> Any:
        assert self._process.stdin is not None  # it is a pipe
        try:
            self._process.stdin.write(msgspec.json.encode(question) + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise PeerError(self._end()) from error
        line = self._line(time.monotonic() + seconds, seconds)
        try:
            failure = msgspec.json.decode(line, type=_Failure)
            if failure.error is not None:
                raise PeerError(failure.error)
            return msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError as error:
            raise PeerError(f"its answer is not understood: {error}") from error

    def _line(self, deadline: float, seconds: float) -> bytes:
        assert self._process.stdout is not None  # it is a pipe
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._kill([])
                raise PeerError(f"no answer within {seconds:g} s; it was killed")
            part = os.read(pipe, 1 << 16)
            if not part:
                raise PeerError(self._end())
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _end(self) -> str:
        """How it ended, in a sentence, with the last line that it printed."""
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill([])
            return "it closed its pipe and was killed"
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _LOG_BYTES))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
        return f"it died with {how}" + (f": {lines[-1].strip()[:300]}" if lines else "")
