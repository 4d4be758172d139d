"""What the processes use: asked for in a thread, since the kernel counts for milliseconds."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

from pdv_mp.front.memory import MemoryAccount
from pdv_mp.front.processes import ProcessorUse
from pdv_mp.memory.gpus import Gpus

logger = logging.getLogger(__name__)

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

    ``fd`` becomes readable when there is an answer; then :meth:`take` hands it over. The thread is
    started at the first question.
    """

    def __init__(self, account: UsageAccount) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._account = account
        self._questions: SimpleQueue[Mapping[str, int] | None] = SimpleQueue()
        self._answers: SimpleQueue[Usage] = SimpleQueue()
        self._waiting: deque[Callable[[Usage], None]] = deque()
        self._thread: threading.Thread | None = None

    def ask(self, processes: Mapping[str, int], answer: Callable[[Usage], None]) -> None:
        """``answer`` will be called, by :meth:`take`, with what these processes use."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="usage")
            self._thread.start()
        self._waiting.append(answer)
        self._questions.put(processes)

    def _serve(self) -> None:
        while (processes := self._questions.get()) is not None:
            found: Usage = {"memory": {}, "cpu": {}, "gpus": []}
            try:
                found = self._account.of(processes)
            except Exception:  # whoever asked, and asks later, gets an answer all the same
                logger.exception("what the processes use could not be found out")
            self._answers.put(found)
            os.eventfd_write(self.fd, 1)

    def take(self) -> None:
        """Give the answers that have come to those who asked for them."""
        for _ in range(os.eventfd_read(self.fd)):
            self._waiting.popleft()(self._answers.get())

    def close(self) -> None:
        """End the thread, and forget who waits."""
        if self._thread is not None:
            self._questions.put(None)
            self._thread.join()
        os.close(self.fd)
