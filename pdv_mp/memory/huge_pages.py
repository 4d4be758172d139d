"""Memory of a process in pages as large as the system gives."""

from __future__ import annotations

import mmap

import torch

HUGE_PAGE_BYTES = 1 << 21
"""Of x86-64 and of ARM with 4 KiB pages; where they have another size, alignment costs nothing."""


def huge_buffer(nbytes: int) -> torch.Tensor:
    """A uint8 tensor [nbytes] of zeros in private memory, for what is read as a whole again and
    again: with 4 KiB pages a step that reads all weights takes a sixth longer.

    A wish: a system that keeps huge pages back, or has none free, gives others.
    """
    memory = mmap.mmap(-1, nbytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE_PAGE_BYTES
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return whole[start : start + nbytes]
