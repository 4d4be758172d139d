"""What the processes use: asked for in a thread, since the kernel counts for milliseconds."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pdv_mp.front.memory import MemoryAccount
from pdv_mp.front.processes import ProcessorUse
from pdv_mp.memory.gpus import Gpus

Usage = dict[str, Any]
"""``memory``, ``cpu`` and ``gpus`` of ``info``."""


class UsageAccount:
    """Asks the kernel and, where models are on a GPU (``on_gpu``), the driver; for one thread at a
    time."""

    def __init__(self, *, on_gpu: bool) -> None:
        self._memory = MemoryAccount(on_gpu=on_gpu)
        self._cpu = ProcessorUse()
        self._gpus = Gpus() if on_gpu else None

    def of(self, processes: Mapping[str, int]) -> Usage:
        """What the processes with these ids use."""
        return {
            "memory": self._memory.of(processes),
            "cpu": self._cpu.of(processes),
            "gpus": [] if self._gpus is None else self._gpus.sample(),
        }


class UsageQuestions:
    """Has an account asked in a thread, one question after the other, so that the loop goes on.

    ``fd`` becomes readable when there is an answer; then :meth:`take` hands it over.
    """

    def __init__(self, account: UsageAccount) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._account = account
        self._waiting: list[tuple[Mapping[str, int], Callable[[Usage], None]]] = []
        self._thread: threading.Thread | None = None
        self._found: Usage = {"memory": {}, "cpu": {}, "gpus": []}

    def ask(self, processes: Mapping[str, int], answer: Callable[[Usage], None]) -> None:
        """``answer`` will be called, by :meth:`take`, with what these processes use."""
        self._waiting.append((processes, answer))
        self._begin()

    def _begin(self) -> None:
        if self._thread is None and self._waiting:
            processes, _ = self._waiting[0]
            self._thread = threading.Thread(target=self._ask, args=(processes,), name="usage")
            self._thread.start()

    def _ask(self, processes: Mapping[str, int]) -> None:
        try:
            self._found = self._account.of(processes)
        finally:
            os.eventfd_write(self.fd, 1)

    def take(self) -> None:
        """Give the answer that has come to whoever asked for it."""
        os.eventfd_read(self.fd)
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        _, answer = self._waiting.pop(0)
        answer(self._found)
        self._begin()

    def close(self) -> None:
        """Wait for the thread, and forget who waits."""
        if self._thread is not None:
            self._thread.join()
        os.close(self.fd)
