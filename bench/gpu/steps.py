"""The steps of a run: a process of its own for each, with a time after which it is killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.gpu.bounds import Device
from bench.gpu.cells import Pair, measure_pair
from bench.gpu.goals import GIANT, LARGE
from bench.gpu.transformers_peer import measure_transformers
from bench.gpu_facts import gpu
from bench.gpu_facts.facts import Report
from bench.inflate.shapes import find_shape
from pdv_mp.workers.product_check import check_products, product_error

_DRAFT = "tinyllama-1.1b"


@dataclass(frozen=True, slots=True)
class Step:
    """``seconds``: its budget. ``in_quick``: whether ``--quick`` has it."""

    title: str
    run: Callable[[Report], None]
    seconds: float
    in_quick: bool = True


def measure_device(report: Report) -> None:
    """The GPU, and the rates that bounds are made of."""
    properties = torch.cuda.get_device_properties(gpu.device())
    report.text("GPU", properties.name)
    report.text("torch, CUDA", f"{torch.__version__}, {torch.version.cuda}")
    report.numbers("memory", "GB", [properties.total_memory / 1e9])
    report.numbers(
        "relative error of a bfloat16 product", "", [product_error(gpu.device(), torch.mm)]
    )
    check_products(gpu.device())
    rates = device_rates(report.repeats(20, 5))
    report.numbers("copy, bytes read and written", "GB/s", [rates.bytes_per_s / 1e9])
    report.numbers("bfloat16 products", "TFLOP/s", [rates.flops_per_s / 1e12])


def device_rates(repeats: int) -> Device:
    """Best rates of a large copy and of a large product."""
    nbytes, size = 1 << 30, 8192
    source = torch.ones(nbytes, dtype=torch.uint8, device=gpu.device())
    target = torch.empty_like(source)
    copies = gpu.device_milliseconds(lambda: target.copy_(source), repeats)
    left = torch.randn(size, size, dtype=torch.bfloat16, device=gpu.device())
    products = gpu.device_milliseconds(lambda: left @ left, repeats)
    return Device(2 * nbytes / (min(copies) / 1e3), 2 * size**3 / (min(products) / 1e3))


def measure_attention(report: Report) -> None:
    """The kernel against scaled dot product attention over gathered keys: error and time."""
    from bench.gpu.attention import measure_kernel

    measure_kernel(report)


def _large(agreement: float, batches: tuple[int, ...], drafts: tuple[int | str, ...]) -> Pair:
    return Pair(find_shape(LARGE), find_shape(_DRAFT), agreement, batches, drafts)


def measure_large(report: Report) -> None:
    """7B, agreement 0.7: the goals at batch 1, 32 and 128, plain decoding beside them."""
    batches = (1, 32) if report.quick else (1, 8, 32, 128)
    measure_pair(report, _large(0.7, batches, (0, 2, 3, 4, "auto")), device_rates(5))


def measure_large_apart(report: Report) -> None:
    """7B, agreement 0.42, batch 1 and 32."""
    measure_pair(report, _large(0.42, (1, 32), (0, 1, 2, "auto")), device_rates(5))


def measure_giant(report: Report) -> None:
    """34B, agreement 0.7, batch 1."""
    pair = Pair(find_shape(GIANT), find_shape(_DRAFT), 0.7, (1,), (0, 5, 7, "auto"))
    measure_pair(report, pair, device_rates(5))


def measure_peer(report: Report) -> None:
    """7B by transformers."""
    measure_transformers(report, _large(0.7, (1,), (0,)), (1,) if report.quick else (1, 8))


STEPS = {
    "device": Step("The device", measure_device, 30),
    "attention": Step("Attention", measure_attention, 60),
    "large": Step("Llama-2-7B and TinyLlama shapes, agreement 0.7", measure_large, 200),
    "apart": Step("Llama-2-7B and TinyLlama shapes, agreement 0.42", measure_large_apart, 80),
    "peer": Step("The same by transformers", measure_peer, 75),
    "giant": Step("CodeLlama-34B and TinyLlama shapes", measure_giant, 170, in_quick=False),
}
"""In the order in which they run; what is left of ten minutes is the last one's."""
