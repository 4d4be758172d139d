"""How busy GPUs are and how much of their memory is used, as NVIDIA's driver tells."""

from __future__ import annotations

import contextlib
import time
from typing import Any

SECONDS_VALID = 1.0
"""The driver's utilisation is itself a mean over some of the last second."""


class Gpus:
    """All GPUs that the driver lists. It is opened at the first question and kept open."""

    def __init__(self) -> None:
        self._handles: list[tuple[Any, dict[str, Any]]] | None = None
        self._found: list[dict[str, Any]] = []
        self._asked = 0.0

    def sample(self) -> list[dict[str, Any]]:
        """One map for each GPU: ``index``, ``name``, ``memory_total`` and ``memory_used`` in bytes,
        ``utilisation`` from 0 to 1. What a GPU does not tell is missing, as a slice of one does not
        tell its utilisation. Empty without a driver; at most a second old."""
        now = time.monotonic()
        if self._handles is None:
            self._handles = _open()
        elif now < self._asked + SECONDS_VALID:
            return self._found
        self._asked = now
        self._found = [{**fixed, **_read(handle)} for handle, fixed in self._handles]
        return self._found


def _open() -> list[tuple[Any, dict[str, Any]]]:
    import pynvml

    handles = []
    with contextlib.suppress(pynvml.NVMLError):  # no driver, or one that lists no GPU
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            handles.append(
                (handle, {"index": index, "name": str(pynvml.nvmlDeviceGetName(handle))})
            )
    return handles


def _read(handle: Any) -> dict[str, Any]:
    import pynvml

    found: dict[str, Any] = {}
    with contextlib.suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        found["memory_total"], found["memory_used"] = int(memory.total), int(memory.used)
    with contextlib.suppress(pynvml.NVMLError):
        found["utilisation"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    return found
