"""Starts real servers for tests, and runs ``pdv-launch`` to its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAUNCH = (sys.executable, "-m", "launcher.launch")
START_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def messages(self) -> list[str]:
        """The lines that ``pdv-launch`` itself wrote to stderr."""
        start = "pdv-launch: "
        return [
            line.removeprefix(start) for line in self.stderr.splitlines() if line.startswith(start)
        ]


def run_launch(*arguments: str, environment: Mapping[str, str] | None = None) -> Finished:
    """Runs ``pdv-launch`` to its end; for command lines that end by themselves."""
    done = subprocess.run(
        [*LAUNCH, *arguments],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


class ServerProcess:
    """A started ``pdv-launch``; a context manager that aborts what is still running at its end.

    After :meth:`wait_ready`, ``ready`` is the report that ``--ready-fd`` gave. ``own_group``:
    whether its processes are a group of their own, as those of a command in a terminal are.
    """

    def __init__(
        self,
        *arguments: str,
        command: Sequence[str] = LAUNCH,
        environment: Mapping[str, str] | None = None,
        port: int = 0,
        own_group: bool = False,
    ) -> None:
        self.ready: dict[str, Any] = {}
        reader, writer = os.pipe()
        self._reader = reader
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed below
        try:
            self.process = subprocess.Popen(
                [*command, *arguments, "--port", str(port), "--ready-fd", str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=(writer,),
                start_new_session=own_group,
                env={**os.environ, **(environment or {})},
            )
        finally:
            os.close(writer)

    @property
    def pid(self) -> int:
        """The launcher's."""
        return self.process.pid

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name, ``launcher`` included."""
        return dict(self.ready["pids"])

    @property
    def endpoint(self) -> str:
        """The tcp endpoint for clients."""
        return str(self.ready["endpoint"])

    @property
    def ipc(self) -> str:
        """The ipc endpoint for clients."""
        return str(self.ready["ipc"])

    @property
    def run_dir(self) -> Path:
        """The private run directory."""
        return Path(self.ready["run_dir"])

    def stderr(self) -> str:
        """All that has been written to stderr so far."""
        self._stderr.seek(0)
        return self._stderr.read()

    def wait_ready(self) -> ServerProcess:
        """Waits until every process is ready; raises RuntimeError if that fails."""
        with open(self._reader, encoding="utf-8") as pipe:
            self._reader = -1
            text = pipe.read()
        if not text:
            code = self.process.wait(START_SECONDS)
            raise RuntimeError(f"pdv-launch ended with {code}:\n{self.stderr()}")
        self.ready = json.loads(text)
        return self

    def wait(self, seconds: float = 60.0) -> Finished:
        """Waits until the launcher ends."""
        code = self.process.wait(seconds)
        return Finished(code, "", self.stderr())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Finished:
        """Sends one signal and waits for the end."""
        self.process.send_signal(number)
        return self.wait()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._reader >= 0:
            os.close(self._reader)
        if self.process.poll() is None:
            for _ in range(2):
                self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._stderr.close()
