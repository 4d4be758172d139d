"""The attention kernel on one layer: its error, and what it takes beside PyTorch's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bench.gpu_facts import gpu
from bench.gpu_facts.facts import Report
from bench.inflate.shapes import find_shape
from pdv_mp.memory.blocks import blocks_for
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.memory.triton_cache import TritonKVCache
from pdv_mp.model.batch import ForwardBatch

SHAPES = {
    "decoding, 1 x 1 row of 512": (1, 1, 512),
    "decoding, 32 x 1 row of 512": (32, 1, 512),
    "verification, 1 x 5 rows of 512": (1, 5, 512),
    "verification, 32 x 5 rows of 512": (32, 5, 512),
    "prefill, 4 x 512 rows": (4, 512, 512),
}
"""Sequences, rows of each, and tokens after them."""

_BLOCK = 16
_TOLERANCE = 0.02


def measure_kernel(report: Report) -> None:
    """Raises RuntimeError where the kernel is wrong."""
    for name in ("llama-2-7b", "tinyllama-1.1b"):
        config = replace(find_shape(name).parse(), num_layers=1)
        for what, (lanes, rows, length) in SHAPES.items():
            blocks = blocks_for(length, _BLOCK)
            arguments = (config, lanes * blocks, _BLOCK, lanes, length)
            fast = TritonKVCache(*arguments, torch.bfloat16, gpu.device())
            slow = PagedKVCache(*arguments, torch.bfloat16, gpu.device())
            exact = PagedKVCache(*arguments, torch.float32, gpu.device())
            fast.pool.normal_()
            for cache in (slow, exact):
                cache.pool.copy_(fast.pool)
            for slot in range(lanes):
                for cache in (fast, slow, exact):
                    cache.set_blocks(slot, range(slot * blocks, (slot + 1) * blocks))
            batch = ForwardBatch.build(
                np.zeros(lanes * rows, np.int64),
                np.full(lanes, rows),
                np.full(lanes, length - rows),
                np.arange(lanes),
                None,
                gpu.device(),
            )
            width = config.num_heads * config.head_dim
            query = torch.randn(lanes * rows, width, dtype=torch.bfloat16, device=gpu.device())
            found = fast.attend(0, query, fast.plan(batch)).float()
            expected = exact.attend(0, query.float(), exact.plan(batch))
            error = float((found - expected).abs().max())
            if not error <= _TOLERANCE * float(expected.abs().max()):
                raise RuntimeError(f"{name}, {what}: attention is wrong by {error:.3g}")
            report.numbers(f"{name}, {what}: largest error", "", [error])
            for kind, cache in (("Triton", fast), ("gather and SDPA", slow)):
                plan = cache.plan(batch)
                milliseconds = gpu.device_milliseconds(
                    lambda cache=cache, plan=plan, query=query: cache.attend(0, query, plan),  # type: ignore[misc]
                    report.repeats(30, 5),
                )
                report.numbers(f"{name}, {what}: {kind}", "µs", [1e3 * ms for ms in milliseconds])
