"""Starts ``pdv-gateway`` for tests, and reads streams of server-sent events."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import time
from typing import Any

import httpx

SECONDS = 60.0


class GatewayProcess:
    """A started ``pdv-gateway``; a context manager that ends it."""

    def __init__(self, endpoint: str, *options: str) -> None:
        command = [sys.executable, "-m", "gateway.main", "--connect", endpoint, "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.url = ""

    def wait_ready(self) -> GatewayProcess:
        """Waits for the line that says where it listens."""
        line = self.read_line()
        while " ready on " not in line:
            line = self.read_line()
        self.url = line.split(" ready on ")[1].split()[0]
        return self

    def read_line(self) -> str:
        """The next line of its stderr. Raises RuntimeError at its end."""
        assert self.process.stderr is not None
        readable, _, _ = select.select([self.process.stderr], [], [], SECONDS)
        line = self.process.stderr.readline() if readable else ""
        if not line:
            raise RuntimeError("pdv-gateway says nothing more")
        return line

    def stop(self) -> tuple[int, str]:
        """Sends SIGTERM; exit status and the rest of its stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, text = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, text

    def __enter__(self) -> GatewayProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


def events(text: str) -> list[dict[str, Any]]:
    """The events of a whole stream, without ``[DONE]``, which must be its last."""
    parts = [part for part in text.split("\n\n") if part and not part.startswith(":")]
    assert all(part.startswith("data: ") for part in parts), parts
    *found, last = [part.removeprefix("data: ") for part in parts]
    assert last == "[DONE]"
    return [json.loads(part) for part in found]


def wait_idle(http: httpx.Client, seconds: float = SECONDS) -> float:
    """Until nothing is open at the server; how long that took."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        counters = http.get("/server_info").json()["counters"]
        if not counters["open_requests"] and not counters["closing_requests"]:
            return time.monotonic() - started
        time.sleep(0.05)
    raise TimeoutError("requests stay open")
