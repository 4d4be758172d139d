"""The check of bfloat16 products; on a CPU its arithmetic, on a GPU the GPU."""

from __future__ import annotations

import pytest
import torch

from pdv_mp.config import ConfigError
from pdv_mp.workers import product_check
from pdv_mp.workers.product_check import TOLERANCE, check_products, product_error

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def right(left: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (left.float() @ other.float()).bfloat16()


def truncated(left: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A part of the sum is missing."""
    return right(left[:, :1000], other[:1000])


def test_what_counts_as_wrong() -> None:
    assert 1e-4 < product_error(CPU, right) < TOLERANCE / 3
    assert product_error(CPU, truncated) > TOLERANCE


@pytest.mark.parametrize("error", [0.92, float("nan")])
def test_wrong_products_end_the_start(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    monkeypatch.setattr(product_check, "product_error", lambda *_: error)
    with pytest.raises(ConfigError, match="products of bfloat16 matrices are wrong on cuda:0"):
        check_products(GPU)
    check_products(CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_this_gpu_multiplies_correctly() -> None:
    check_products(GPU)
