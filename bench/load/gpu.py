"""What GPUs do while a window lasts, as NVML tells; nothing where there is no driver."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import Any

from bench.results.records import GpuUse

PERIOD_SECONDS = 0.1
"""Between two samples; NVML's utilisation is itself a mean over some of the last second."""


@dataclass(slots=True)
class _Seen:
    name: str
    busy: list[float] = field(default_factory=list)
    memory: int = 0


class GpuSampler:
    """Samples all GPUs that NVML lists, in a thread, between :meth:`begin` and :meth:`end`; a
    context manager."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._seen: list[_Seen] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_open = False

    def __enter__(self) -> GpuSampler:
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return self
        self._is_open = True
        with contextlib.suppress(pynvml.NVMLError):  # a driver that lists none, or lost one
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                seen = _Seen(str(pynvml.nvmlDeviceGetName(handle)))
                self._handles.append(handle)
                self._seen.append(seen)
        return self

    def begin(self) -> None:
        """From now on samples count."""
        if self._handles:
            self._thread = threading.Thread(target=self._sample, name="gpu-sampler", daemon=True)
            self._thread.start()

    def end(self) -> list[GpuUse]:
        """What was seen since; of a GPU that does not tell its utilisation or memory nothing."""
        self._join()
        return [
            GpuUse(
                name=seen.name,
                utilisation=sum(seen.busy) / len(seen.busy),
                memory_bytes=seen.memory,
            )
            for seen in self._seen
            if seen.busy
        ]

    def _sample(self) -> None:
        import pynvml

        while True:
            for handle, seen in zip(self._handles, self._seen, strict=True):
                try:
                    busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
                    memory = pynvml.nvmlDeviceGetMemoryInfo(handle).used
                except pynvml.NVMLError:  # such as a slice of a GPU, which does not tell it
                    continue
                seen.busy.append(busy / 100)
                seen.memory = max(seen.memory, int(memory))
            if self._stop.wait(PERIOD_SECONDS):
                return

    def _join(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __exit__(self, *exception: object) -> None:
        self._join()
        if self._is_open:
            import pynvml

            pynvml.nvmlShutdown()
