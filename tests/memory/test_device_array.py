"""Tensors over memory that is not theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pdv_mp.memory.device_array import DeviceArray, without_owning


class OnTheHost:
    """The description of a GPU's memory as that of a CPU's, which has the same form."""

    def __init__(self, array: DeviceArray) -> None:
        self.__array_interface__ = {**array.__cuda_array_interface__, "version": 3}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_places_types_and_strides_are_those_of_the_tensor(dtype: torch.dtype) -> None:
    whole = torch.arange(60).to(dtype).view(5, 12)
    part = whole[1:4, 2:9]
    shape, strides = tuple(part.shape), tuple(part.stride())
    seen = np.asarray(OnTheHost(DeviceArray(part.data_ptr(), shape, dtype, strides)))
    np.testing.assert_array_equal(seen, part.numpy())
    whole[2, 3] = 7
    assert seen[1, 1] == 7


def test_without_strides_one_element_comes_after_the_other() -> None:
    whole = torch.arange(12, dtype=torch.int64)
    seen = np.asarray(OnTheHost(DeviceArray(whole.data_ptr() + 16, (5,), torch.int64)))
    np.testing.assert_array_equal(seen, np.arange(2, 7))


def test_a_type_that_is_not_known_is_refused() -> None:
    with pytest.raises(KeyError):
        DeviceArray(0, (1,), torch.bfloat16)


def test_on_a_cpu_a_tensor_stays_what_it_is() -> None:
    tensor = torch.ones(2)
    assert without_owning(tensor) is tensor


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_memory_is_seen_and_not_kept() -> None:
    before = torch.cuda.memory_allocated()
    owned = torch.arange(40, dtype=torch.float32, device="cuda").view(4, 10)
    view = without_owning(owned[:, :7])
    owned[2, 3] = 99
    assert torch.equal(view, owned[:, :7])
    assert view.data_ptr() == owned.data_ptr()
    del owned
    assert torch.cuda.memory_allocated() == before
