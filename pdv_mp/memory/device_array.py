"""Tensors over a GPU's memory that is not theirs: whoever owns it decides how long it is there."""

from __future__ import annotations

from typing import Any

import torch

_KINDS = {torch.uint8: "|u1", torch.int64: "<i8", torch.float32: "<f4"}


class DeviceArray:
    """Memory of a GPU in the form in which torch takes it over without a copy.

    ``strides`` in elements, None for one element after the other. Raises KeyError for types other
    than uint8, int64 and float32.
    """

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        strides: tuple[int, ...] | None = None,
    ) -> None:
        in_bytes = None if strides is None else tuple(step * dtype.itemsize for step in strides)
        self.__cuda_array_interface__: dict[str, Any] = {
            "version": 2,
            "typestr": _KINDS[dtype],
            "shape": shape,
            "data": (address, False),
            "strides": in_bytes,
        }

    def tensor(self, device: torch.device) -> torch.Tensor:
        """The memory as a tensor, which does not keep it."""
        return torch.as_tensor(self, device=device)


def without_owning(tensor: torch.Tensor) -> torch.Tensor:
    """The same values at the same place, whose memory this tensor does not keep; on a CPU, where
    nothing is recorded, the tensor itself.

    Made for what a recorded step leaves: replays write it again, recordings of other steps may
    have their own there.
    """
    if tensor.device.type != "cuda":
        return tensor
    strides = tuple(tensor.stride())
    array = DeviceArray(tensor.data_ptr(), tuple(tensor.shape), tensor.dtype, strides)
    return array.tensor(tensor.device)
