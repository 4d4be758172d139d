"""Recording work as a CUDA graph; on a CPU the work itself stands for its recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

_WARM_UPS = 3
"""Runs before a recording: kernels are compiled and libraries make their choices in them."""

Work = Callable[[], None]


class Capture(Protocol):
    """Turns work on buffers that stay where they are into something that repeats it."""

    def __call__(self, work: Work) -> Work:
        """What repeats ``work``, which reads and writes the same memory every time."""


def call_directly(work: Work) -> Work:
    """The work itself."""
    return work


class CudaCapture:
    """CUDA graphs of one GPU, which share memory for what lives within a replay: no two of them run
    at the same time, and what one has left there is gone with the next replay of any."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # What is recorded keeps the priority of the stream that recorded it.
        priority = torch.cuda.current_stream(device).priority
        self._stream = torch.cuda.Stream(device, priority)  # type: ignore[no-untyped-call]

    def __call__(self, work: Work) -> Work:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            work()
        current.wait_stream(self._stream)
        return graph.replay
