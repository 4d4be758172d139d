"""Products with matrices as they are and packed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pdv_mp.model.linear import PackedLinear, PlainLinear, can_pack, pack

needs_mkl = pytest.mark.skipif(
    not can_pack(torch.float32, torch.device("cpu")), reason="this torch has no MKL"
)
KINDS = [PlainLinear, pytest.param(PackedLinear, marks=needs_mkl)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8, 33, 160, 600])
def test_products_are_those_of_torch(kind: type, biased: bool, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(96, 72, generator=generator)
    bias = torch.randn(96, generator=generator) if biased else None
    x = torch.randn(rows, 72, generator=generator)
    target = torch.randn(rows, 96, generator=generator)
    expected = F.linear(x, weight, bias)
    linear = kind(weight, bias)
    torch.testing.assert_close(linear(x), expected, rtol=0, atol=5e-5)
    added = target.clone()
    linear.add_to(added, x)
    torch.testing.assert_close(added, target + expected, rtol=0, atol=5e-5)


@needs_mkl
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("outputs", [40, 600])
@pytest.mark.parametrize("biased", [False, True])
def test_a_packed_matrix_does_not_need_the_one_it_was_made_from(
    monkeypatch: pytest.MonkeyPatch, threads: int, outputs: int, biased: bool
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    weight, bias = torch.randn(outputs, 24), torch.randn(outputs) if biased else None
    x = torch.randn(5, 24)
    expected = F.linear(x, weight, bias)
    linear = pack(weight, bias)
    assert isinstance(linear, PackedLinear) == (threads == 1 or outputs == 600)
    weight.fill_(torch.nan)
    if bias is not None:
        bias.fill_(torch.nan)
    torch.testing.assert_close(linear(x), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_not_packed(dtype: torch.dtype) -> None:
    assert not can_pack(dtype, torch.device("cpu"))
    with pytest.raises(ValueError, match="cannot be packed"):
        PackedLinear(torch.zeros(4, 4, dtype=dtype))
