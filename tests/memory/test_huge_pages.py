"""Private memory in large pages."""

from __future__ import annotations

import torch

from pdv_mp.memory.huge_pages import HUGE_PAGE_BYTES, huge_buffer

SIZES = (1, 4096, 3 * HUGE_PAGE_BYTES + 5)


def test_a_buffer_is_aligned_zero_writable_and_outlives_its_maker() -> None:
    buffers = [huge_buffer(size) for size in SIZES]
    for number, buffer in enumerate(buffers):
        assert buffer.data_ptr() % HUGE_PAGE_BYTES == 0
        assert not buffer.any()
        buffer.fill_(number + 1)
    for number, (buffer, size) in enumerate(zip(buffers, SIZES, strict=True)):
        assert buffer.dtype == torch.uint8
        assert buffer.shape == (size,)
        assert (buffer == number + 1).all()
