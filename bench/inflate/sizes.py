"""What a checkpoint will weigh, part by part."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.inflate.names import tensor_shapes
from pdv_mp.model.architecture import ModelConfig

_PARTS = (
    ("embedding", "embed_tokens"),
    ("attention", "self_attn."),
    ("feed-forward", "mlp."),
    ("LM head", "lm_head"),
    ("norms", "norm"),
)


@dataclass(frozen=True, slots=True)
class PartSize:
    """Parameters and bytes of one part of the model."""

    part: str
    parameters: int
    nbytes: int


def part_sizes(config: ModelConfig, itemsize: int) -> list[PartSize]:
    """Every part and, last, the total."""
    counts = {part: 0 for part, _ in _PARTS}
    for name, shape in tensor_shapes(config):
        part = next(part for part, mark in _PARTS if mark in name)
        counts[part] += math.prod(shape)
    counts["total"] = sum(counts.values())
    return [PartSize(part, count, count * itemsize) for part, count in counts.items() if count]


def size_table(sizes: list[PartSize]) -> str:
    """The sizes as lines of text."""
    lines = [f"{'part':<14}{'parameters':>16}{'GB':>10}"]
    lines += [f"{one.part:<14}{one.parameters:>16,}{one.nbytes / 1e9:>10.3f}" for one in sizes]
    return "\n".join(lines)
