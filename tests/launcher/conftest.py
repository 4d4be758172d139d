"""A supervisor over fake children, for the tests in this folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

LAUNCHER = Path(__file__).with_name("fake_launcher.py")


class FakeServer:
    """A supervisor with fake children, and what it prints."""

    def __init__(self, children: dict[str, str], *, wrapper: Sequence[str] = (), **plan: Any):
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, str(LAUNCHER), json.dumps({"children": children, **plan})],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[plan["parent_fd"]] if "parent_fd" in plan else [],
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdout, self.stderr = self.process.stdout, self.process.stderr

    def wait_ready(self) -> dict[str, Any]:
        line = self.stdout.readline()
        assert line, self.stderr.read()
        return json.loads(line)

    def wait_line(self, text: str) -> list[str]:
        """Reads stderr up to the line with that text."""
        lines = []
        for line in self.stderr:
            lines.append(line)
            if text in line:
                return lines
        raise AssertionError(f"{text!r} is not in {lines}")

    def wait_restarts(self, count: int) -> dict[str, Any]:
        """The report after that many processes have become ready again."""
        for _ in range(count):
            report = self.wait_ready()
        return report

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def finish(self) -> tuple[int, str]:
        """The exit code and the rest of stderr."""
        rest = self.stderr.read()
        return self.process.wait(30), rest


@pytest.fixture
def serve() -> Iterator[Any]:
    """``serve(front=…, worker=…, **plan)`` starts a supervisor; see fake_launcher.py.

    The behaviour of ``worker`` is that of ``worker-0``; ``children`` has those of other names.
    """
    servers: list[FakeServer] = []

    def start(
        front: str = "serve",
        worker: str = "serve",
        children: dict[str, str] | None = None,
        **plan: Any,
    ) -> FakeServer:
        named = {"front": front, "worker-0": worker, **(children or {})}
        servers.append(FakeServer(named, **plan))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
        server.stdout.close()
        server.stderr.close()
