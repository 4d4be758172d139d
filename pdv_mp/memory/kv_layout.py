"""How keys and values lie in flat buffers: shapes and sizes, known before any memory is."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdv_mp.memory.blocks import blocks_for

if TYPE_CHECKING:
    import torch

    from pdv_mp.model.shape import ModelShape

TABLE_ITEM_BYTES = 4
"""Bytes of an entry of a block table: int32."""


@dataclass(frozen=True, slots=True)
class ContiguousLayout:
    """One run of tokens per slot, and a store of blocks that outlive their sequence."""

    config: ModelShape
    num_slots: int
    max_model_len: int
    dtype: torch.dtype
    block_size: int
    stored_blocks: int = 0

    @property
    def run_shape(self) -> tuple[int, int, int, int, int]:
        """[layers, 2, heads, tokens rounded up to whole blocks, head_dim] of a slot."""
        capacity = blocks_for(self.max_model_len, self.block_size) * self.block_size
        config = self.config
        return (config.num_layers, 2, config.num_kv_heads, capacity, config.head_dim)

    @property
    def place_shape(self) -> tuple[int, int, int, int, int]:
        """[layers, 2, heads, block_size, head_dim] of a block in the store."""
        config = self.config
        return (config.num_layers, 2, config.num_kv_heads, self.block_size, config.head_dim)

    @property
    def slot_bytes(self) -> int:
        """Bytes from one slot to the next: whole pages, which can be given back alone."""
        return _whole_pages(math.prod(self.run_shape) * self.dtype.itemsize)

    @property
    def place_bytes(self) -> int:
        """Bytes from one stored block to the next, in whole pages."""
        return _whole_pages(math.prod(self.place_shape) * self.dtype.itemsize)

    @property
    def runs_bytes(self) -> int:
        """Bytes of the runs of all slots."""
        return self.num_slots * self.slot_bytes

    @property
    def store_bytes(self) -> int:
        """Bytes of the store, 0 without one."""
        return self.stored_blocks * self.place_bytes


@dataclass(frozen=True, slots=True)
class PagedLayout:
    """Blocks that are reached through a table, and a last one that nobody owns, the dummy."""

    config: ModelShape
    num_blocks: int
    block_size: int
    num_slots: int
    max_model_len: int
    dtype: torch.dtype

    @property
    def pool_shape(self) -> tuple[int, int, int, int, int, int]:
        """[layers, num_blocks + 1, block_size, 2, heads, head_dim]."""
        config = self.config
        blocks = self.num_blocks + 1
        return (
            config.num_layers,
            blocks,
            self.block_size,
            2,
            config.num_kv_heads,
            config.head_dim,
        )

    @property
    def table_shape(self) -> tuple[int, int]:
        """[num_slots, blocks of the longest sequence]."""
        return (self.num_slots, blocks_for(self.max_model_len, self.block_size))

    @property
    def pool_bytes(self) -> int:
        """Bytes of all blocks."""
        return math.prod(self.pool_shape) * self.dtype.itemsize

    @property
    def table_bytes(self) -> int:
        """Bytes of the block table."""
        return math.prod(self.table_shape) * TABLE_ITEM_BYTES


def _whole_pages(nbytes: int) -> int:
    return blocks_for(nbytes, mmap.PAGESIZE) * mmap.PAGESIZE
