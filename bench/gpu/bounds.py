"""What a GPU could do at best: tokens/s from bytes and operations (the roofline)."""

from __future__ import annotations

from dataclasses import dataclass

from pdv_mp.model.architecture import ModelConfig


@dataclass(frozen=True, slots=True)
class Device:
    """Measured rates: bytes read per second, and operations per second of bfloat16 products."""

    bytes_per_s: float
    flops_per_s: float


def streamed_parameters(config: ModelConfig) -> int:
    """Parameters that a step reads: all but the input embedding."""
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    attention = config.hidden_size * (heads + config.num_heads * config.head_dim)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    return config.num_layers * layer + config.vocab_size * config.hidden_size


def step_seconds(
    config: ModelConfig, device: Device, batch: int, rows: int, context: int, itemsize: int = 2
) -> float:
    """Least time of a forward pass of ``rows`` tokens of each of ``batch`` sequences.

    max(W / BW, 2 N B m / F) + max(B ctx kv / BW, 4 layers heads head_dim ctx B m / F).
    """
    parameters = streamed_parameters(config)
    weights = max(
        parameters * itemsize / device.bytes_per_s,
        2 * parameters * batch * rows / device.flops_per_s,
    )
    kv_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * itemsize
    width = config.num_layers * config.num_heads * config.head_dim
    attention = max(
        batch * context * kv_bytes / device.bytes_per_s,
        4 * width * context * batch * rows / device.flops_per_s,
    )
    return weights + attention


def bound(
    target: ModelConfig,
    draft: ModelConfig,
    device: Device,
    batch: int,
    context: int,
    acceptance: float,
    drafts: int,
) -> float:
    """Most tokens/s with so many drafts a cycle, each kept with probability ``acceptance``; 0
    drafts is plain decoding. A cycle emits (1 - a^(k+1)) / (1 - a) tokens (arXiv 2211.17192)."""
    emitted = float(sum(acceptance**step for step in range(drafts + 1)))
    seconds = step_seconds(target, device, batch, drafts + 1, context)
    seconds += drafts * step_seconds(draft, device, batch, 1, context)
    return batch * emitted / seconds
