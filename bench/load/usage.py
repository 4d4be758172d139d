"""What processes use: cores, context switches, memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.load.errors import LoadError
from bench.results.records import Use
from pdv_mp.memory.report import process_memory

_VOLUNTARY, _INVOLUNTARY = "voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"


@dataclass(frozen=True, slots=True)
class Spent:
    """What a process has used since its start: CPU seconds, and context switches of its threads."""

    cpu: float
    voluntary: int
    involuntary: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What all processes have used at a time in ns, and the CPU seconds of the whole machine."""

    at_ns: int
    spent: Mapping[str, Spent]
    machine: float


Memory = Mapping[str, tuple[int, int | None]]
"""RSS and, where the system tells, PSS, in bytes, by process name."""


class Processes:
    """Processes by name. Methods raise LoadError when one has ended."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)

    def sample(self) -> Sample:
        """What they have used so far."""
        spent = {name: self._spent(name, pid) for name, pid in self._pids.items()}
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # A guest's time is part of user and nice.
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        return Sample(time.monotonic_ns(), spent, sum(times) - idle - guests)

    def memory(self) -> Memory:
        """What memory they have now. It takes milliseconds."""
        return {name: self._memory(name, pid) for name, pid in self._pids.items()}

    def _spent(self, name: str, pid: int) -> Spent:
        try:
            process = psutil.Process(pid)
            times = process.cpu_times()
            tasks = Path(f"/proc/{pid}/task")
            if tasks.is_dir():
                voluntary, involuntary = _switches(tasks)
            else:
                voluntary, involuntary = process.num_ctx_switches()
        except (psutil.NoSuchProcess, FileNotFoundError) as error:
            raise _ended(name, pid) from error
        return Spent(times.user + times.system, voluntary, involuntary)

    def _memory(self, name: str, pid: int) -> tuple[int, int | None]:
        try:
            found = process_memory(pid)
        except OSError:
            try:
                return psutil.Process(pid).memory_info().rss, None
            except psutil.NoSuchProcess as error:
                raise _ended(name, pid) from error
        return found.rss, found.pss


def _ended(name: str, pid: int) -> LoadError:
    return LoadError(f"process {name} ({pid}) of the server has ended")


def _switches(tasks: Path) -> tuple[int, int]:
    """Of all threads; the kernel counts them one by one."""
    voluntary = involuntary = 0
    for task in tasks.iterdir():
        try:
            lines = (task / "status").read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has ended since
        for line in lines:
            if line.startswith(_VOLUNTARY):
                voluntary += int(line[len(_VOLUNTARY) :])
            elif line.startswith(_INVOLUNTARY):
                involuntary += int(line[len(_INVOLUNTARY) :])
    return voluntary, involuntary


def uses(before: Sample, after: Sample, memory: Memory) -> dict[str, Use]:
    """What each process used between two samples. Threads that ended between them took their
    context switches with them."""
    seconds = (after.at_ns - before.at_ns) / 1e9
    found = {}
    for name, end in after.spent.items():
        start = before.spent[name]
        rss, pss = memory[name]
        found[name] = Use(
            cores=(end.cpu - start.cpu) / seconds,
            voluntary_switches=max(0, end.voluntary - start.voluntary),
            involuntary_switches=max(0, end.involuntary - start.involuntary),
            rss_bytes=rss,
            pss_bytes=pss,
        )
    return found


def others(before: Sample, after: Sample) -> float:
    """Cores that all other processes of the machine used between two samples, on average; clocks
    that tick in hundredths of a second make it a little more or less."""
    ours = sum(end.cpu - before.spent[name].cpu for name, end in after.spent.items())
    return max(0.0, after.machine - before.machine - ours) / ((after.at_ns - before.at_ns) / 1e9)
