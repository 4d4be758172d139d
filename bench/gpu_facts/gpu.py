"""The GPU that is measured, and clocks for it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from pdv_mp.memory.cuda_ipc import gpu_uuid


def device() -> torch.device:
    """The first GPU that this process sees."""
    return torch.device("cuda:0")


def synchronize() -> None:
    """Wait until the GPU has done all that this process wants of it."""
    torch.cuda.synchronize(device())


def device_milliseconds(work: Callable[[], object], repeats: int, warm_up: int = 3) -> list[float]:
    """How long the GPU takes for what ``work`` queues, by CUDA's timing events, in ms each."""
    for _ in range(warm_up):
        work()
    found = []
    for _ in range(repeats):
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return found


def host_microseconds(work: Callable[[], object], repeats: int, warm_up: int = 3) -> list[float]:
    """How long ``work`` takes on the host's clock, nothing being queued before it, in µs each."""
    for _ in range(warm_up):
        work()
    found = []
    for _ in range(repeats):
        synchronize()
        started = time.perf_counter_ns()
        work()
        found.append((time.perf_counter_ns() - started) / 1000)
    return found


def used_bytes() -> int:
    """Memory of the GPU that all processes use, as NVML says; CUDA need not be initialised."""
    import pynvml

    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(_handle()).used)
    finally:
        pynvml.nvmlShutdown()


def _handle() -> object:
    """NVML's handle of the GPU; the first one before CUDA is initialised, if only one is there."""
    import pynvml

    if torch.cuda.is_initialized():
        uuid = gpu_uuid(device())
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
    if pynvml.nvmlDeviceGetCount() != 1:
        raise RuntimeError("with several GPUs NVML's number of this one is not known beforehand")
    return pynvml.nvmlDeviceGetHandleByIndex(0)
