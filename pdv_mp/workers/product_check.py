"""Whether products of bfloat16 matrices are right on this GPU, before anything depends on them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pdv_mp.config import ConfigError

TOLERANCE = 1e-2
"""Relative error allowed; rounding the results alone makes 0.002 of it."""

_SHAPE = (512, 1024, 1024)

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def check_products(device: torch.device, product: Product = torch.mm) -> None:
    """Raise ConfigError if a product 512 x 1024 x 1024 in bfloat16 differs from that in float32.

    cuBLAS chooses its kernels by the number of multiprocessors that a process may use, and for some
    numbers it has chosen kernels with relative errors near 1. Does nothing on a CPU.
    """
    if device.type != "cuda":
        return
    error = product_error(device, product)
    if not error < TOLERANCE:
        raise ConfigError(
            f"products of bfloat16 matrices are wrong on {device}: relative error {error:.3g}, "
            f"where {TOLERANCE:g} is allowed. A share of the GPU's multiprocessors (MPS, green "
            "contexts) can cause that: let this process use all of them"
        )


def product_error(device: torch.device, product: Product) -> float:
    """Relative error of a bfloat16 product, in the norm, against float32 on the host."""
    rows, inner, columns = _SHAPE
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator).bfloat16()
    right = torch.randn(inner, columns, generator=generator).bfloat16()
    exact = left.float() @ right.float()
    found = product(left.to(device), right.to(device)).float().cpu()
    return float((found - exact).norm() / exact.norm())
