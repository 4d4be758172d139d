"""Rotary position embedding (arXiv 2104.09864) as a multiplication of complex numbers."""

from __future__ import annotations

import math

import torch

from pdv_mp.model.architecture import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Angle per position of each rotated pair, float32 [head_dim / 2], scaling included."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        # Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, and the ones
        # between the two thresholds blended.
        wavelengths = 2 * math.pi / frequencies
        turns = rope.original_max_position_embeddings / wavelengths
        blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        blend = blend.clamp(0.0, 1.0)
        return (1 - blend) * frequencies / rope.factor + blend * frequencies
    return frequencies


def rotation_table(
    rope: RopeConfig, head_dim: int, length: int, device: torch.device
) -> torch.Tensor:
    """e^(i * position * frequency), complex64 [length, 1, head_dim / 2]."""
    positions = torch.arange(length, dtype=torch.float32)
    angles = positions[:, None, None] * inverse_frequencies(rope, head_dim)
    return torch.complex(angles.cos(), angles.sin()).to(device)


def rotate(heads: torch.Tensor, rotations: torch.Tensor) -> None:
    """Rotate the interleaved pairs of [N, H, head_dim] in place by complex64 [N, 1, head_dim / 2].

    The angles and, below float32, the product are computed in float32.
    """
    shape = (*heads.shape[:2], -1, 2)
    if heads.dtype == torch.float32:
        torch.view_as_complex(heads.view(shape)).mul_(rotations)
    else:
        pairs = torch.view_as_complex(heads.float().view(shape))
        heads.copy_(torch.view_as_real(pairs * rotations).flatten(-2))
