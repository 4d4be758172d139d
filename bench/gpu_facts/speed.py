"""Bandwidth, launches, copies, matrix products and graphs, in one process."""

from __future__ import annotations

import time
from itertools import pairwise

import torch

from bench.gpu_facts import gpu
from bench.gpu_facts.facts import Report
from bench.gpu_facts.workloads import PAIRS, Steps

_MIB = 1 << 20
GEMM_TOLERANCE = 1e-2


def measure_bandwidth(report: Report) -> None:
    """Copies on the GPU, and between it and the host."""
    size = (64 if report.quick else 1024) * _MIB
    repeats = report.repeats(20, 5)
    source = torch.ones(size, dtype=torch.uint8, device=gpu.device())
    target = torch.empty_like(source)
    found = gpu.device_milliseconds(lambda: target.copy_(source), repeats)
    report.numbers("copy on the GPU, bytes read and written", "GB/s", _rates(2 * size, found))
    found = gpu.device_milliseconds(lambda: source.sum(dtype=torch.int64), repeats)
    report.numbers("reading (a sum)", "GB/s", _rates(size, found))
    pinned = torch.ones(size // 4, dtype=torch.uint8).pin_memory()
    part = target[: size // 4]
    found = gpu.device_milliseconds(lambda: part.copy_(pinned, non_blocking=True), repeats)
    report.numbers("pinned host memory to GPU", "GB/s", _rates(size // 4, found))
    found = gpu.device_milliseconds(lambda: pinned.copy_(part, non_blocking=True), repeats)
    report.numbers("GPU to pinned host memory", "GB/s", _rates(size // 4, found))


def _rates(nbytes: int, milliseconds: list[float]) -> list[float]:
    return [nbytes / ms / 1e6 for ms in milliseconds]


def measure_launches(report: Report) -> None:
    """What the host pays for small things."""
    rounds, kernels = report.repeats(20, 5), 1000
    one = torch.zeros(1, device=gpu.device())
    queued, done = [], []
    for turn in range(rounds + 1):
        gpu.synchronize()
        started = time.perf_counter_ns()
        for _ in range(kernels):
            one.add_(1)
        launched = time.perf_counter_ns()
        gpu.synchronize()
        if turn:
            queued.append((launched - started) / kernels / 1000)
            done.append((time.perf_counter_ns() - started) / kernels / 1000)
    report.numbers("launch of a small kernel, host", "µs", queued)
    report.numbers("small kernels one after another, until done", "µs", done)
    repeats = report.repeats(500, 50)
    event = gpu.event()

    def kernel_and_wait() -> None:
        one.add_(1)
        event.record()
        event.synchronize()

    report.numbers("kernel, event, wait", "µs", gpu.host_microseconds(kernel_and_wait, repeats))
    ids = torch.zeros(160, dtype=torch.int64, device=gpu.device())
    report.numbers("160 ids to the host (.cpu())", "µs", gpu.host_microseconds(ids.cpu, repeats))
    host = torch.zeros(160, dtype=torch.int64)

    def pageable() -> None:
        host.to(gpu.device(), non_blocking=True)

    def pinned() -> None:
        host.pin_memory().to(gpu.device(), non_blocking=True)

    report.numbers("160 ids to the GPU, pageable", "µs", gpu.host_microseconds(pageable, repeats))
    report.numbers(
        "160 ids to the GPU, through a pinned copy", "µs", gpu.host_microseconds(pinned, repeats)
    )


def measure_gemm(report: Report) -> None:
    """Whether bfloat16 products are right, which losslessness depends on, and how fast."""
    torch.manual_seed(0)
    a = torch.randn(512, 1024, device=gpu.device())
    b = torch.randn(1024, 1024, device=gpu.device())
    exact = a.bfloat16().float() @ b.bfloat16().float()
    errors = []
    for _ in range(report.repeats(20, 5)):
        product = (a.bfloat16() @ b.bfloat16()).float()
        errors.append(float((product - exact).norm() / exact.norm()))
    report.numbers("relative error of a bfloat16 product 512 x 1024 x 1024", "", errors)
    if max(errors) > GEMM_TOLERANCE:
        raise RuntimeError(f"bfloat16 products are wrong by {max(errors):.3f} on this GPU")
    size = 1024 if report.quick else 8192
    left = torch.randn(size, size, dtype=torch.bfloat16, device=gpu.device())
    found = gpu.device_milliseconds(lambda: left @ left, report.repeats(20, 5))
    report.numbers(
        f"bfloat16 product {size} x {size} x {size}",
        "TFLOP/s",
        [2 * size**3 / ms / 1e9 for ms in found],
    )
    report.text("precision of float32 products", torch.get_float32_matmul_precision())


def measure_graphs(report: Report) -> None:
    """A step of the shipped pair, launched kernel by kernel and replayed as a CUDA graph."""
    for role in ("draft", "verify"):
        for batch in (1, 8) if report.quick else (1, 2, 4, 8, 16, 32, 64, 128):
            steps = Steps(PAIRS["shipped"], role, batch, 128)
            repeats = report.repeats(50, 10)
            eager = gpu.host_microseconds(steps.run, repeats)
            report.numbers(f"{role}, batch {batch}: eager", "µs", eager)
            report.numbers(
                f"{role}, batch {batch}: graph",
                "µs",
                gpu.host_microseconds(steps.captured(), repeats),
            )


def kernel_gaps(count: int) -> list[float]:
    """Microseconds between the ends of ``count`` small kernels, launched one after another."""
    values = torch.zeros(1 << 16, device=gpu.device())
    events = [gpu.timing_event() for _ in range(count + 1)]
    gpu.synchronize()
    for event in events:
        values.add_(1)
        event.record()
    gpu.synchronize()
    return [1000 * before.elapsed_time(after) for before, after in pairwise(events)]
