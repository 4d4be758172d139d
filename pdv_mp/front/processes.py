"""What the server's processes use of the machine's cores: ``info.cpu``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from pdv_mp.topology_rows import BESIDE

LAUNCHER = "launcher"


class ProcessorUse:
    """Asks the system for the CPU time of processes. It takes tens of microseconds for each."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}

    def of(self, processes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """By name, of the processes with these ids: its ``pid``, ``seconds`` of CPU time since its
        start, in all its threads, and how many ``threads`` it has. Those that are gone are
        missing."""
        found = {}
        for name, pid in processes.items():
            try:
                process = self._known.get(pid) or psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    threads = process.num_threads()
            except psutil.Error:
                self._known.pop(pid, None)
                continue
            self._known[pid] = process
            seconds = times.user + times.system
            found[name] = {"pid": pid, "seconds": seconds, "threads": threads}
        for pid in self._known.keys() - set(processes.values()):
            del self._known[pid]
        return found


class OtherProcesses:
    """The launcher and those beside the topology, of which no scheduler knows. The launcher's
    report has their ids; it is written anew whenever one has changed."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._written_ns = 0
        self._pids: dict[str, int] = {}

    def read_from(self, ready_file: Path) -> None:
        """Where the launcher's report will be once all are ready."""
        self._file = ready_file

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name; empty before the server is ready."""
        if self._file is None:
            return {}
        try:
            written_ns = self._file.stat().st_mtime_ns
            if written_ns != self._written_ns:
                pids = json.loads(self._file.read_text(encoding="utf-8"))["pids"]
                names = (LAUNCHER, *BESIDE)
                self._pids = {name: pids[name] for name in names if name in pids}
                self._written_ns = written_ns
        except FileNotFoundError:
            return {}
        return self._pids
