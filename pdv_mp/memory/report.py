"""How much memory a process really takes, and what it shares with others."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

BUFFER_PREFIX = "pdv_mp-"
"""Beginning of the names under which the kernel shows shared buffers of this engine."""

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of a process in bytes, as the kernel counts it.

    ``rss``: all its pages that are in memory. ``pss``: the same with each page divided by the
    number of processes that have it, so that the sum over processes counts each page once.
    ``private``: pages that no other process has.
    """

    rss: int
    pss: int
    private: int


@dataclass(frozen=True, slots=True)
class BufferMemory:
    """What a process has of one shared buffer, in bytes; `rss`, `pss` as in ProcessMemory.

    ``touched_alone``: pages of the buffer that only this process has touched so far; there is one
    of each all the same. ``copied``: pages that replace those of the buffer in this process, which
    would be memory taken twice.
    """

    rss: int
    pss: int
    touched_alone: int
    copied: int


def process_memory(pid: int) -> ProcessMemory:
    """The memory of a process. Raises OSError when it is gone or another user's."""
    fields = _fields(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines())
    return ProcessMemory(fields["Rss"], fields["Pss"], _private(fields))


def buffer_memory(pid: int, prefix: str = BUFFER_PREFIX) -> dict[str, BufferMemory]:
    """What a process has of the shared buffers whose names begin with ``prefix``, by name.

    Several mappings of a name are added up. Raises OSError when the process is gone or another
    user's.
    """
    found: dict[str, BufferMemory] = {}
    lines = Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines) if _MAPPING.match(line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        matched = _MAPPING.match(lines[start])
        name = matched[1].removesuffix(_DELETED).removeprefix("/memfd:") if matched else ""
        if not name.startswith(prefix):
            continue
        fields = _fields(lines[start + 1 : end])
        copied = fields["Anonymous"]
        before = found.get(name, BufferMemory(0, 0, 0, 0))
        found[name] = BufferMemory(
            before.rss + fields["Rss"],
            before.pss + fields["Pss"],
            before.touched_alone + _private(fields) - copied,
            before.copied + copied,
        )
    return found


def gpu_memory(pids: frozenset[int]) -> dict[int, int]:
    """Bytes of all GPUs' memory that each of these processes uses, for those that use any.

    Empty where there is no driver of NVIDIA's. Processes that the driver does not tell apart, as
    in some containers, are missing.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    used: dict[int, int] = {}
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            with contextlib.suppress(pynvml.NVMLError):  # a GPU that does not tell it
                for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device):
                    if process.pid in pids and process.usedGpuMemory is not None:
                        used[process.pid] = used.get(process.pid, 0) + process.usedGpuMemory
    finally:
        pynvml.nvmlShutdown()
    return used


def _fields(lines: list[str]) -> dict[str, int]:
    """Bytes by name, of lines like ``Pss:   12 kB``."""
    fields = {}
    for line in lines:
        name, _, rest = line.partition(":")
        value, _, unit = rest.strip().partition(" ")
        if unit == "kB":
            fields[name] = int(value) * 1024
    return fields


def _private(fields: dict[str, int]) -> int:
    return fields["Private_Clean"] + fields["Private_Dirty"]
