"""Servers that are measured beside each other: all run at once, one is asked at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import psutil

from bench.load.errors import LoadError
from pdv_mp import LLM
from pdv_mp.client.client import Client

SAME_WORK: Mapping[str, Any] = {
    "enable_prefix_caching": False,
    "num_speculative_tokens": 4,
}
"""Options of servers that are compared, unless they are what is compared: nobody skips a prompt,
all draft as far as the source documents' engine did, whatever each would choose, and all multiply
with the same kernels."""

IDLE_SECONDS = 20.0
"""How long a server may take to have nothing open any more."""


class Server:
    """One server, started again when it has ended. ``options`` are those of ``pdv-launch``, the
    topology among them where it is None; ``starts``: how often it has been started."""

    def __init__(self, topology: str | None, options: dict[str, Any]) -> None:
        self._topology = topology
        self._options = options
        self._llm: LLM | None = None
        self._launcher: psutil.Process | None = None
        self.starts = 0

    def ensure(self) -> LLM:
        """The running server, started if there is none. Raises LaunchError if it does not start."""
        if self._llm is not None and not self.is_running():
            self.close()
        if self._llm is None:
            self._llm = LLM(topology=self._topology, **self._options)
            self._launcher = psutil.Process(self._llm.pids["launcher"])
            self.starts += 1
        return self._llm

    def is_running(self) -> bool:
        """Whether its launcher is there."""
        try:
            return (
                self._launcher is not None
                and self._launcher.is_running()
                and self._launcher.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False

    def restarts_when_idle(self) -> int:
        """How often its processes were started again so far; waits until nothing is open.

        Raises LoadError if that takes too long, ServerUnreachable if nothing is answered,
        LaunchError if it does not start.
        """
        deadline = time.monotonic() + IDLE_SECONDS
        with Client(self.ensure().ipc, timeout=IDLE_SECONDS) as client:
            while True:
                counters = client.info()["counters"]
                if not counters["open_requests"] and not counters["closing_requests"]:
                    return int(counters["restarts"])
                if time.monotonic() > deadline:
                    raise LoadError("the server does not become idle")

    def close(self) -> None:
        """End it."""
        if self._llm is not None:
            self._llm.close()
            self._llm = self._launcher = None
