"""Seeded noise on a small model's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch


def perturbed(
    weights: Mapping[str, torch.Tensor], scale: float, seed: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Every matrix of the layers plus ``scale`` times its standard deviation times normal noise.

    Embeddings, norms and biases stay. All are rounded to ``dtype``. The noise of a tensor follows
    from the seed and its name, so that it has the same direction at every scale.
    """
    return {
        name: _perturbed(name, value, scale, seed).to(dtype)
        if scale and is_perturbed(name)
        else value.to(dtype)
        for name, value in weights.items()
    }


def is_perturbed(name: str) -> bool:
    """Whether noise is added to the tensor of this name."""
    return name.endswith("_proj.weight")


def _perturbed(name: str, value: torch.Tensor, scale: float, seed: int) -> torch.Tensor:
    value = value.float()
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    noise = torch.randn(value.shape, generator=generator)
    return value + scale * float(value.std()) * noise
