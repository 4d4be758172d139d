"""Products with a model's matrices: as they lie in memory, or packed for the CPU's kernels."""

from __future__ import annotations

from typing import Protocol

import torch

_PACKED_FOR_ROWS = 512
"""What MKL is told of the number of rows when it packs. Packed for many rows, few are multiplied as
fast as packed for few; the reverse is a third slower. A row's bits do not depend on how many there
are."""

_SERIAL_OUTPUTS = 512
"""By a packed matrix of at most so many outputs MKL multiplies in one thread, whatever it has."""


class Linear(Protocol):
    """x @ W^T + b for a matrix W [out, in] and, if there is one, a bias b [out]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in] -> [N, out], a new tensor."""
        ...

    def add_to(self, target: torch.Tensor, x: torch.Tensor) -> None:
        """target [N, out] += x @ W^T + b, in place, x [N, in]."""
        ...


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether :class:`PackedLinear` can compute with such weights in this process."""
    mkl = bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
    return mkl and device.type == "cpu" and dtype == torch.float32


def pack(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The faster kind for a matrix [out, in] for which :func:`can_pack`, with no memory in common
    with `weight` and `bias`. As many threads as torch has now are expected to multiply."""
    if torch.get_num_threads() > 1 and len(weight) <= _SERIAL_OUTPUTS:
        return PlainLinear(weight.clone(), None if bias is None else bias.clone())
    return PackedLinear(weight, bias)


class PlainLinear:
    """Reads the matrix where it lies, so that processes can share it."""

    __slots__ = ("_bias", "_matrix")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._matrix = weight.t()
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._bias is None:
            return torch.mm(x, self._matrix)
        return torch.addmm(self._bias, x, self._matrix)

    def add_to(self, target: torch.Tensor, x: torch.Tensor) -> None:
        target.addmm_(x, self._matrix)
        if self._bias is not None:
            target.add_(self._bias)


class PackedLinear:
    """Keeps a copy of the matrix in the order in which MKL's kernels read it; the matrix itself is
    not needed any more.

    A matrix that is not packed is packed anew for every product, which at 5 to 64 rows takes a
    third of the time.
    """

    __slots__ = ("_bias", "_packed", "_shape")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """`weight`: float32 [out, in] on the CPU. Raises ValueError for another one."""
        if not can_pack(weight.dtype, weight.device):
            raise ValueError(f"{weight.dtype} on {weight.device} cannot be packed")
        self._packed = torch.ops.mkl._mkl_reorder_linear_weight(
            weight.contiguous(), _PACKED_FOR_ROWS
        )
        # The operator asks the original for its shape only.
        self._shape = weight.new_empty(1).expand(weight.shape)
        self._bias = None if bias is None else bias.clone()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkl._mkl_linear(
            x, self._packed, self._shape, self._bias, len(x)
        )
        return product

    def add_to(self, target: torch.Tensor, x: torch.Tensor) -> None:
        target.add_(self(x))
