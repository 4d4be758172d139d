"""What memory the server's processes take: ``info.memory``."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pdv_mp.memory.report import gpu_memory, process_memory

SECONDS_VALID = 2.0
"""The kernel counts a process's pages one by one: however often clients ask, it is asked no more
often than this."""


class MemoryAccount:
    """Asks the kernel, and where models are on a GPU (``on_gpu``) the driver, for each process."""

    def __init__(self, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._processes: dict[str, int] = {}
        self._found: dict[str, dict[str, int]] = {}
        self._asked = 0.0

    def of(self, processes: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """Bytes by name: ``rss``, ``pss``, ``private`` and on a GPU ``vram``, of the processes with
        these ids. Those that are gone, or that the system tells nothing about, are missing."""
        now = time.monotonic()
        if self._processes != processes or now >= self._asked + SECONDS_VALID:
            self._processes, self._asked = dict(processes), now
            self._found = self._ask(processes)
        return self._found

    def _ask(self, processes: Mapping[str, int]) -> dict[str, dict[str, int]]:
        found = {}
        for name, pid in processes.items():
            try:
                memory = process_memory(pid)
            except OSError:
                continue
            found[name] = {"rss": memory.rss, "pss": memory.pss, "private": memory.private}
        vram = gpu_memory(frozenset(processes.values())) if self._on_gpu else {}
        for name, fields in found.items():
            if processes[name] in vram:
                fields["vram"] = vram[processes[name]]
        return found
