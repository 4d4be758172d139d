"""A KV cache of contiguous runs, on the CPU."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from pdv_mp.memory.kv_cache import Addresses, KVCache, typed
from pdv_mp.memory.kv_layout import ContiguousLayout
from pdv_mp.memory.shared import SharedBuffer
from pdv_mp.model.batch import ForwardBatch, to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pdv_mp.memory.attention_plan import AttentionGroup, AttentionPlan
    from pdv_mp.model.shape import ModelShape


class ContiguousKVCache(KVCache):
    """One contiguous run of `max_model_len` tokens per slot, in CPU memory.

    Layout [num_slots, num_layers, 2, num_kv_heads, max_model_len, head_dim]: a range of slots is a
    strided view, never copied, and a slot is one range of pages. Memory is committed when pages are
    first touched, so the slots together may exceed the block budget; `discard` gives a slot's pages
    back. Reads count too: a lane shorter than its group's context, or one that bridges a gap
    between slots, is read to that context, of which `committed_bytes` tells the effect. Batches
    whose slots are close together need the fewest calls: use low slots first.

    Beside the runs there is a store of `stored_blocks` places, [layers, 2, heads, block_size,
    head_dim] each, for what is to outlive a sequence: `save` copies blocks out of a run, `load`
    into one.

    Both are made here unless given: ``runs`` and ``store``, of the sizes of
    :class:`~pdv_mp.memory.kv_layout.ContiguousLayout`, may be mapped by other processes too.
    """

    _consecutive = True

    def __init__(
        self,
        config: ModelShape,
        num_slots: int,
        max_model_len: int,
        dtype: torch.dtype,
        block_size: int,
        stored_blocks: int = 0,
        *,
        runs: SharedBuffer | None = None,
        store: SharedBuffer | None = None,
    ) -> None:
        super().__init__(config, num_slots, max_model_len, dtype, block_size, torch.device("cpu"))
        layout = ContiguousLayout(
            config, num_slots, max_model_len, dtype, block_size, stored_blocks
        )
        self._slot_bytes = layout.slot_bytes
        if runs is None:
            runs = SharedBuffer.create(layout.runs_bytes, "pdv_mp-kv")
        self._buffer = runs
        flat = typed(runs.tensor(), dtype, layout.runs_bytes)
        shape = layout.run_shape
        strides = torch.empty(shape, device="meta").stride()
        pool = flat.as_strided((num_slots, *shape), (self._slot_bytes // dtype.itemsize, *strides))
        # [2 * layer + key or value, slot, head, position, head_dim]: what attention reads.
        self._runs = pool.flatten(1, 2).transpose(0, 1)
        # [layer, slot, position, key or value, head, head_dim]: one or two indices address a row.
        self._rows = pool.permute(1, 0, 4, 2, 3, 5)
        self._layer_rows = self._rows.unbind(0)
        # [slot, layer, key or value, head, block, position in the block, head_dim]
        self._run_blocks = pool.view(*pool.shape[:4], -1, block_size, self._head_dim)
        self._store: SharedBuffer | None = None
        self._places = torch.empty(0)
        if stored_blocks:
            if store is None:
                store = SharedBuffer.create(layout.store_bytes, "pdv_mp-kv-store")
            self._store = store
            self._place_bytes = layout.place_bytes
            place = layout.place_shape
            strides = torch.empty(place, device="meta").stride()
            self._places = typed(store.tensor(), dtype, layout.store_bytes).as_strided(
                (stored_blocks, *place), (self._place_bytes // dtype.itemsize, *strides)
            )

    def save(self, slot: int, indices: Sequence[int], places: Sequence[int]) -> None:
        """Copy the blocks `indices` of a slot's run to these places of the store."""
        if len(places):
            blocks = self._run_blocks[slot].index_select(3, torch.tensor(indices))
            self._places.index_copy_(0, torch.tensor(places), blocks.movedim(3, 0))

    def load(self, slot: int, places: Sequence[int]) -> None:
        """Copy these places of the store to the first blocks of a slot's run."""
        if len(places):
            blocks = self._places.index_select(0, torch.tensor(places))
            self._run_blocks[slot, :, :, :, : len(places)] = blocks.movedim(0, 3)

    def discard_stored(self, place: int) -> None:
        """Give the memory of a place of the store back to the system; its contents are gone."""
        if self._store is None:
            raise ValueError("the cache has no store")
        self._store.discard(place * self._place_bytes, self._place_bytes)

    def write(self, layer: int, kv: torch.Tensor, plan: AttentionPlan) -> None:
        rows = kv.view(-1, 2, self._num_kv_heads, self._head_dim)
        if plan.write_views is None:
            self._layer_rows[layer].index_put_(plan.write_index, rows)
        else:
            plan.write_views[layer].copy_(rows)

    def export_rows(self, slot: int, start: int, out: torch.Tensor) -> torch.Tensor:
        end = self._check_rows(slot, start, out)
        return out.copy_(self._rows[:, slot, start:end])

    def import_rows(self, slot: int, start: int, rows: torch.Tensor) -> None:
        end = self._check_rows(slot, start, rows)
        self._rows[:, slot, start:end] = rows

    @cached_property
    def addresses(self) -> Addresses:
        # [slot, layer, position, key or value, head, head_dim]
        by_slot = self._rows.transpose(0, 1)
        slot, layer, position, value, head, _ = by_slot.stride()
        return Addresses(by_slot.data_ptr(), by_slot.shape[2], slot, layer, value, head, position)

    def units(
        self, batch: ForwardBatch, ends: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        self._check_batch(batch)
        if ends is not None:
            self._check_ends(batch.slots, ends)
        return batch.slots[:, None]

    def discard(self, slot: int) -> None:
        """Give the memory of a slot back to the system; its contents are gone."""
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"slot {slot} of {self.num_slots} does not exist")
        self._buffer.discard(slot * self._slot_bytes, self._slot_bytes)

    def reset(self) -> None:
        """Give all memory of slots and store back to the system; nobody may be using them."""
        self._buffer.discard(0, self._buffer.nbytes)
        if self._store is not None:
            self._store.discard(0, self._store.nbytes)

    def committed_bytes(self) -> int:
        """Memory that slots and store really occupy, in bytes: exact, in constant time."""
        stored = 0 if self._store is None else self._store.committed_bytes()
        return self._buffer.committed_bytes() + stored

    def close(self) -> None:
        """Give all memory back; the cache cannot be used afterwards."""
        self._runs = self._rows = self._run_blocks = self._places = torch.empty(0)
        self._layer_rows = ()
        self._buffer.close()
        if self._store is not None:
            self._store.close()

    def _destination(
        self, batch: ForwardBatch
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...] | None]:
        if batch.num_sequences > 1:
            return (to_device(batch.row_slots, self.device), batch.positions), None
        start = int(batch.start_positions[0])
        rows = self._rows[:, int(batch.slots[0]), start : start + batch.num_rows]
        return (), rows.unbind(0)

    def _source(self, slots: NDArray[np.int64], context: int) -> tuple[torch.Tensor, ...]:
        return self._runs[:, int(slots[0]) : int(slots[-1]) + 1, :, :context].unbind(0)

    def _keys_values(self, layer: int, group: AttentionGroup) -> tuple[torch.Tensor, torch.Tensor]:
        return group.source[2 * layer], group.source[2 * layer + 1]
