"""What the machine is, and what a process takes of the GPU's memory before it computes anything."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.gpu_facts import gpu
from bench.gpu_facts.facts import Report
from bench.gpu_facts.peers import Peer, Talk
from pdv_mp.memory.cuda_ipc import check_allocator
from pdv_mp.memory.report import gpu_memory

_MIB = 1 << 20
_COMPUTE_MODES = ("default", "exclusive thread", "prohibited", "exclusive process")


def measure_machine(report: Report) -> None:
    """Versions and settings; nothing is timed."""
    properties = torch.cuda.get_device_properties(gpu.device())
    report.text("GPU", properties.name)
    report.text("multiprocessors", properties.multi_processor_count)
    report.text("memory", f"{properties.total_memory / _MIB:,.0f} MiB")
    report.text("compute capability", f"{properties.major}.{properties.minor}")
    report.text("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")
    for what, find in _LOOK_UPS.items():
        try:
            report.text(what, find())
        except Exception as error:  # noqa: BLE001 - said on the page
            report.text(what, f"cannot be told: {type(error).__name__}: {error}")


def _nvml(ask: Callable[[object], object]) -> Callable[[], object]:
    def look_up() -> object:
        import pynvml

        pynvml.nvmlInit()
        try:
            return ask(gpu.nvml_handle())
        finally:
            pynvml.nvmlShutdown()

    return look_up


def _driver(_: object) -> object:
    import pynvml

    return pynvml.nvmlSystemGetDriverVersion()


def _compute_mode(handle: object) -> object:
    import pynvml

    return _COMPUTE_MODES[int(pynvml.nvmlDeviceGetComputeMode(handle))]


def _mig(handle: object) -> object:
    import pynvml

    return "on" if pynvml.nvmlDeviceGetMigMode(handle)[0] else "off"


def _seen_by_nvml() -> str:
    torch.zeros(1, device=gpu.device())
    found = gpu_memory(frozenset([os.getpid()]))
    return "yes" if found else "no: VRAM per process cannot be reported here"


def _version_of(package: str) -> Callable[[], object]:
    def look_up() -> object:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not there"

    return look_up


def _shared_memory() -> str:
    return f"{shutil.disk_usage('/dev/shm').total / _MIB:,.0f} MiB"


def _check_allocator() -> str:
    check_allocator()
    return f"{torch.cuda.get_allocator_backend()}, which allows shared memory"


_LOOK_UPS: dict[str, Callable[[], object]] = {
    "driver": _nvml(_driver),
    "compute mode": _nvml(_compute_mode),
    "MIG": _nvml(_mig),
    "torch's allocator": _check_allocator,
    "NVML tells this process's memory": _seen_by_nvml,
    "clock source": Path(
        "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    ).read_text,
    "/dev/shm": _shared_memory,
    "PID namespace": lambda: os.readlink("/proc/self/ns/pid"),
    "cores": lambda: len(os.sched_getaffinity(0)),
    "MPS control program": lambda: shutil.which("nvidia-cuda-mps-control") or "not there",
    "MPS server program": lambda: shutil.which("nvidia-cuda-mps-server") or "not there",
    "pyzmq": _version_of("pyzmq"),
    "triton": _version_of("triton"),
    "cuda-bindings": _version_of("cuda-bindings"),
}


def measure_context(report: Report) -> None:
    """Memory that a process takes for itself, step by step, each time in a fresh process."""
    found: dict[str, list[float]] = {}
    for _ in range(report.repeats(3, 1)):
        with Peer("context") as peer:
            for what, mebibytes in peer.ask(go=True).items():
                found.setdefault(what, []).append(mebibytes)
    for what, values in found.items():
        report.numbers(what, "MiB", values)


def context_peer(talk: Talk) -> None:
    """Report how the GPU's used memory grows."""
    talk.receive()
    found = {}
    before = gpu.used_bytes()

    def note(what: str) -> None:
        nonlocal before
        gpu.synchronize()
        now = gpu.used_bytes()
        found[what] = (now - before) / _MIB
        before = now

    torch.zeros(1, device=gpu.device())
    note("context and a first tensor")
    matrix = torch.zeros(512, 512, dtype=torch.bfloat16, device=gpu.device())
    torch.mm(matrix, matrix)
    note("first product of matrices (workspace of cuBLAS)")
    query = torch.zeros(1, 8, 64, 64, dtype=torch.bfloat16, device=gpu.device())
    F.scaled_dot_product_attention(query, query, query)
    note("first attention")
    talk.send(**found)
    talk.receive()
