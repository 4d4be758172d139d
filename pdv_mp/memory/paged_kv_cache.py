"""A KV cache of blocks that are reached through a table, on any device."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from pdv_mp.memory.attention_plan import AttentionGroup, AttentionPlan
from pdv_mp.memory.blocks import blocks_for
from pdv_mp.memory.kv_cache import Addresses, KVCache, typed
from pdv_mp.memory.kv_layout import PagedLayout
from pdv_mp.model.batch import ForwardBatch, to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pdv_mp.model.shape import ModelShape


class PagedKVCache(KVCache):
    """Blocks of `block_size` tokens reached through a table, on any device.

    Layout [num_layers, num_blocks + 1, block_size, 2, num_kv_heads, head_dim]. `block_table`
    [num_slots, max_blocks] int32 lives on the host, where batches are planned, and names the
    reserved last block, the dummy, where a slot has none.

    Both are made here unless given: ``pool`` (on `device`) and ``table`` (on the host), uint8 of
    the sizes of :class:`~pdv_mp.memory.kv_layout.PagedLayout`, may be mapped by other processes
    too. Then one of them writes a slot's row of the table, and only while no other has the slot; a
    given table is taken as it is until :meth:`reset`.
    """

    def __init__(
        self,
        config: ModelShape,
        num_blocks: int,
        block_size: int,
        num_slots: int,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        pool: torch.Tensor | None = None,
        table: torch.Tensor | None = None,
    ) -> None:
        super().__init__(config, num_slots, max_model_len, dtype, block_size, torch.device(device))
        if num_blocks < 1:
            raise ValueError("num_blocks must be positive")
        layout = PagedLayout(config, num_blocks, block_size, num_slots, max_model_len, dtype)
        self.num_blocks = num_blocks
        self.dummy_block = num_blocks
        self.max_blocks = layout.table_shape[1]
        if pool is None:
            pool = torch.zeros(layout.pool_bytes, dtype=torch.uint8, device=self.device)
        self.pool = typed(pool, dtype, layout.pool_bytes).view(layout.pool_shape)
        self._blocks = list(self.pool.unbind(0))
        self._rows = [layer.view((num_blocks + 1) * block_size, -1) for layer in self._blocks]
        made = table is None
        if table is None:
            table = torch.empty(layout.table_bytes, dtype=torch.uint8)
        entries = typed(table, torch.int32, layout.table_bytes).view(layout.table_shape)
        self.block_table: NDArray[np.int32] = entries.numpy()
        if made:
            self.reset()

    def reset(self) -> None:
        """Take all blocks from all slots; nobody may be using them."""
        self.block_table.fill(self.dummy_block)

    def capacity(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        held = (self.block_table[slots] != self.dummy_block).sum(axis=1, dtype=np.int64)
        rows: NDArray[np.int64] = np.minimum(held * self.block_size, self.max_model_len)
        return rows

    def set_blocks(self, slot: int, block_ids: Sequence[int]) -> None:
        """Let a slot's sequence live in these blocks, in this order; replaces what was there."""
        ids = np.asarray(block_ids, dtype=np.int32)
        if len(ids) > self.max_blocks:
            raise ValueError(f"{len(ids)} blocks exceed the {self.max_blocks} of a sequence")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_blocks:
            raise ValueError(f"block ids must lie in 0 .. {self.num_blocks - 1}")
        row = self.block_table[slot]
        row[: len(ids)] = ids
        row[len(ids) :] = self.dummy_block

    def clear(self, slot: int) -> None:
        """Take all blocks from a slot."""
        self.set_blocks(slot, ())

    def write(self, layer: int, kv: torch.Tensor, plan: AttentionPlan) -> None:
        self._rows[layer].index_copy_(0, plan.write_index[0], kv)

    def export_rows(self, slot: int, start: int, out: torch.Tensor) -> torch.Tensor:
        places = self._row_range(slot, start, out)
        for rows, part in zip(self._rows, out.flatten(2).unbind(0), strict=True):
            torch.index_select(rows, 0, places, out=part)
        return out

    def import_rows(self, slot: int, start: int, rows: torch.Tensor) -> None:
        places = self._row_range(slot, start, rows)
        parts = rows.to(self.device).flatten(2).unbind(0)
        for into, part in zip(self._rows, parts, strict=True):
            into.index_copy_(0, places, part)

    def _row_range(self, slot: int, start: int, rows: torch.Tensor) -> torch.Tensor:
        """Where the rows of a slot from ``start`` on lie."""
        positions = np.arange(start, self._check_rows(slot, start, rows))
        return to_device(self.row_places(np.full_like(positions, slot), positions), self.device)

    def row_places(
        self, row_slots: NDArray[np.int64], row_positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Where rows lie: block * block_size + offset, [N], of a slot and a position each. Raises
        ValueError for a position that its slot has no block for."""
        blocks = self.block_table[row_slots, row_positions // self.block_size]
        if int(blocks.max()) == self.dummy_block:
            row = int(np.argmax(blocks))
            raise ValueError(
                f"slot {row_slots[row]} has no block for position {row_positions[row]}"
            )
        places: NDArray[np.int64] = blocks.astype(np.int64) * self.block_size
        places += row_positions % self.block_size
        return places

    @cached_property
    def addresses(self) -> Addresses:
        layer, block, position, value, head, _ = self.pool.stride()
        return Addresses(self.pool.data_ptr(), self.block_size, block, layer, value, head, position)

    def units(
        self, batch: ForwardBatch, ends: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        self._check_batch(batch)
        context = batch.context
        if ends is None:
            self.row_places(batch.row_slots, batch.row_positions)
        else:
            self._check_ends(batch.slots, ends)
            context = int(ends.max())
        blocks = self.block_table[batch.slots, : blocks_for(context, self.block_size)]
        return blocks.astype(np.int64, order="C")

    def static_plan(
        self, tables: torch.Tensor, positions: torch.Tensor, places: torch.Tensor
    ) -> AttentionPlan:
        """The plan of a batch of equally many rows per lane that is known on the device alone.

        ``tables`` int32 [L, max_blocks]: the block table of each lane. ``positions`` int64 [L * Q],
        lane after lane; ``places`` int64 [L * Q]: block * block_size + offset of each. What is done
        here and with the plan depends on no value of these and waits for none.
        """
        lanes, context = len(tables), tables.shape[1] * self.block_size
        rows = len(positions) // lanes
        beyond = torch.arange(context, device=self.device) > positions[:, None]
        mask = torch.zeros(beyond.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(beyond, -torch.inf)
        mask = mask.repeat_interleave(self._group_size, dim=0).view(lanes, 1, -1, context)
        group = AttentionGroup(
            lanes=lanes,
            rows=rows,
            context=context,
            first_row=0,
            slots=np.zeros(lanes, np.int64),
            source=(tables.view(-1),),
            mask=mask,
        )
        return AttentionPlan((places,), None, (group,), None, None)

    def _destination(
        self, batch: ForwardBatch
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...] | None]:
        places = self.row_places(batch.row_slots, batch.row_positions)
        return (to_device(places, self.device),), None

    def _source(self, slots: NDArray[np.int64], context: int) -> tuple[torch.Tensor, ...]:
        blocks = self.block_table[slots, : blocks_for(context, self.block_size)]
        return (to_device(blocks.astype(np.int64).ravel(), self.device),)

    def _keys_values(self, layer: int, group: AttentionGroup) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self._blocks[layer].index_select(0, group.source[0])
        rows = rows.view(group.lanes, -1, 2, self._num_kv_heads, self._head_dim)
        keys, values = rows[:, : group.context].permute(2, 0, 3, 1, 4).unbind(0)
        return keys, values
