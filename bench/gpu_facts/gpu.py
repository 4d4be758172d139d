"""The GPU that is measured, and clocks for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import torch

from pdv_mp.memory.cuda_ipc import gpu_uuid


def device() -> torch.device:
    """The first GPU that this process sees."""
    return torch.device("cuda:0")


def synchronize() -> None:
    """Wait until the GPU has done all that this process wants of it."""
    torch.cuda.synchronize(device())


def stream(priority: int = 0) -> torch.cuda.Stream:
    """A new stream; lower numbers go first."""
    return torch.cuda.Stream(device(), priority)  # type: ignore[no-untyped-call]


def event() -> torch.cuda.Event:
    """A new event, for waiting."""
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def timing_event() -> torch.cuda.Event:
    """A new event that notes when it happens."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def shared_event() -> tuple[torch.cuda.Event, str]:
    """A new event that other processes may wait for, and its handle."""
    made = torch.cuda.Event(interprocess=True)  # type: ignore[no-untyped-call]
    return made, made.ipc_handle().hex()  # type: ignore[no-untyped-call]


def open_event(handle: str) -> torch.cuda.Event:
    """The event of another process."""
    opened = torch.cuda.Event.from_ipc_handle(  # type: ignore[no-untyped-call]
        device(), bytes.fromhex(handle)
    )
    return cast(torch.cuda.Event, opened)


def device_milliseconds(work: Callable[[], object], repeats: int, warm_up: int = 3) -> list[float]:
    """How long the GPU takes for what ``work`` queues, by CUDA's timing events, in ms each."""
    for _ in range(warm_up):
        work()
    found = []
    for _ in range(repeats):
        start, end = timing_event(), timing_event()
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
        return int(pynvml.nvmlDeviceGetMemoryInfo(nvml_handle()).used)
    finally:
        pynvml.nvmlShutdown()


def nvml_handle() -> object:
    """NVML's handle of the GPU; the first one before CUDA is initialised, if only one is there."""
    import pynvml

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        uuid = gpu_uuid(device())
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
    if pynvml.nvmlDeviceGetCount() != 1:
        raise RuntimeError("with several GPUs NVML's number of this one is not known beforehand")
    return pynvml.nvmlDeviceGetHandleByIndex(0)
