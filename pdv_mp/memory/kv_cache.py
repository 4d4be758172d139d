"""KV caches: contiguous runs on the CPU, blocks behind a table elsewhere."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from pdv_mp.memory.attention_plan import AttentionGroup, AttentionPlan, GroupLayout, layout_batch
from pdv_mp.memory.blocks import blocks_for
from pdv_mp.memory.kv_layout import ContiguousLayout, PagedLayout
from pdv_mp.memory.shared import SharedBuffer
from pdv_mp.model.batch import ForwardBatch, to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pdv_mp.model.shape import ModelShape


class Addresses(NamedTuple):
    """Where a cache's keys and values lie, for kernels that are given pointers.

    The key of token t, layer l, head h of a sequence begins at ``base`` + unit * ``unit`` + l *
    ``layer`` + h * ``head`` + (t mod ``unit_tokens``) * ``position``, its value ``value`` behind
    it; the unit is entry t / ``unit_tokens`` of what :meth:`KVCache.units` says. ``base`` is an
    address, all others count items of the cache's dtype, except ``unit_tokens``.
    """

    base: int
    unit_tokens: int
    unit: int
    layer: int
    value: int
    head: int
    position: int


class KVCache(ABC):
    """Keys and values of up to `num_slots` sequences of at most `max_model_len` tokens.

    A forward pass calls `plan` or `advance` once and then `write` and `attend` for each layer. The
    cache does not know how long a sequence is: rows beyond the committed length are overwritten by
    whoever writes these positions next, so rolling back is a matter of length alone.
    """

    _consecutive = False

    def __init__(
        self,
        config: ModelShape,
        num_slots: int,
        max_model_len: int,
        dtype: torch.dtype,
        block_size: int,
        device: torch.device,
    ) -> None:
        if min(num_slots, max_model_len, block_size) < 1:
            raise ValueError("num_slots, max_model_len and block_size must be positive")
        self.num_slots = num_slots
        self.max_model_len = max_model_len
        self.block_size = block_size
        self.dtype = dtype
        self.device = device
        self._num_layers = config.num_layers
        self._num_kv_heads = config.num_kv_heads
        self._head_dim = config.head_dim
        self._group_size = config.group_size
        # Row i of this view is 0 up to column max_model_len-1-i and -inf after it: the causal masks
        # of all positions, as overlapping windows of one vector.
        self._capacity = blocks_for(max_model_len, block_size) * block_size
        steps = torch.zeros(2 * self._capacity, dtype=dtype, device=device)
        steps[self._capacity :] = -torch.inf
        self._masks = steps.as_strided((self._capacity, self._capacity), (1, 1))

    def plan(self, batch: ForwardBatch) -> AttentionPlan:
        """Lay out a batch. Raises ValueError for a slot or position that does not exist."""
        self._check_batch(batch)
        write_index, write_views = self._destination(batch)
        layout = layout_batch(batch, self._consecutive, self._call_cost())
        groups = []
        first_row = 0
        for group in layout.groups:
            lanes, rows = group.query_positions.shape
            groups.append(
                AttentionGroup(
                    lanes=lanes,
                    rows=rows,
                    context=group.context,
                    first_row=first_row,
                    slots=group.slots,
                    source=self._source(group.slots, group.context),
                    mask=self._mask(group),
                )
            )
            first_row += lanes * rows
        return AttentionPlan(
            write_index=write_index,
            write_views=write_views,
            groups=tuple(groups),
            pad=None if layout.pad is None else to_device(layout.pad, self.device),
            restore=None if layout.restore is None else to_device(layout.restore, self.device),
        )

    def _check_batch(self, batch: ForwardBatch) -> None:
        if int(batch.slots.max()) >= self.num_slots:
            raise ValueError(f"slot {batch.slots.max()} of {self.num_slots} does not exist")
        if int(batch.row_positions.max()) >= self.max_model_len:
            raise ValueError(
                f"position {batch.row_positions.max()} lies beyond max_model_len "
                f"{self.max_model_len}"
            )

    def _check_ends(self, slots: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        beyond = ends > self.capacity(slots)
        if beyond.any():
            entry = int(beyond.argmax())
            raise ValueError(f"slot {slots[entry]} has no room for {ends[entry]} tokens")

    def advance(self, plan: AttentionPlan, batch: ForwardBatch) -> AttentionPlan:
        """Lay out a batch made by `ForwardBatch.advance` from the one that `plan` was made for.

        Where that one had one row per sequence its groups are kept, which is much cheaper than a
        new layout. Raises ValueError for a position that does not exist.
        """
        if any(group.rows > 1 for group in plan.groups):
            return self.plan(batch)
        write_index, write_views = self._destination(batch)
        return replace(
            plan,
            write_index=write_index,
            write_views=write_views,
            groups=tuple(self._advance_group(group) for group in plan.groups),
        )

    def _advance_group(self, group: AttentionGroup) -> AttentionGroup:
        context = group.context + 1
        if context > self.max_model_len:
            raise ValueError(
                f"position {group.context} lies beyond max_model_len {self.max_model_len}"
            )
        return AttentionGroup(
            lanes=group.lanes,
            rows=1,
            context=context,
            first_row=group.first_row,
            slots=group.slots,
            source=self._source(group.slots, context),
            # A row at the next position sees one key more, and what it saw starts one key later.
            mask=None if group.mask is None else F.pad(group.mask, (1, 0)),
        )

    def capacity(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows for which each of these slots has room, [B]."""
        return np.full(len(slots), self.max_model_len, np.int64)

    def _call_cost(self) -> int:
        """Pairs of a query row and a key whose attention takes as long as one more call does.

        Measured: about 20 microseconds, in which a CPU thread attends to 1024 pairs of 256 wide
        queries; with more threads, or on a GPU, a batched call gets more done in that time.
        """
        threads = torch.get_num_threads() if self.device.type == "cpu" else 64
        width = self._group_size * self._num_kv_heads * self._head_dim
        return threads * (1 << 18) // width

    @abstractmethod
    def reset(self) -> None:
        """Forget everything, also what another process has left; nobody may be using the cache."""

    def rows_shape(self, tokens: int) -> tuple[int, int, int, int, int]:
        """[layers, tokens, 2, heads, head_dim]: the form in which both kinds of cache hand out the
        rows of a sequence, so that one can take over what another one has."""
        return (self._num_layers, tokens, 2, self._num_kv_heads, self._head_dim)

    def rows_bytes(self, tokens: int) -> int:
        """Bytes of the rows of so many tokens."""
        return math.prod(self.rows_shape(tokens)) * self.dtype.itemsize

    @abstractmethod
    def export_rows(self, slot: int, start: int, out: torch.Tensor) -> torch.Tensor:
        """Copy a slot's rows from position ``start`` on into ``out``, which is returned.

        ``out``: contiguous, of :meth:`rows_shape` and on the cache's device. Raises ValueError for
        rows that the slot does not have.
        """

    @abstractmethod
    def import_rows(self, slot: int, start: int, rows: torch.Tensor) -> None:
        """Write rows of the form of :meth:`export_rows` to a slot from position ``start`` on; they
        may lie on another device. Raises ValueError for rows that the slot has no room for."""

    def _check_rows(self, slot: int, start: int, rows: torch.Tensor) -> int:
        """The position after the last row."""
        end = start + rows.shape[1]
        if tuple(rows.shape) != self.rows_shape(rows.shape[1]):
            raise ValueError(f"rows of shape {tuple(rows.shape)} are not of this cache")
        if not 0 <= slot < self.num_slots:
            raise ValueError(f"slot {slot} of {self.num_slots} does not exist")
        if not 0 <= start < end <= self.max_model_len:
            raise ValueError(f"rows {start} to {end} lie beyond max_model_len {self.max_model_len}")
        return end

    @abstractmethod
    def write(self, layer: int, kv: torch.Tensor, plan: AttentionPlan) -> None:
        """Store the batch's keys and values in place; kv: [N, 2 * num_kv_heads * head_dim].

        Per row all key heads, then all value heads. Only the batch's own rows are touched.
        """

    def attend(self, layer: int, q: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Causal attention of N query rows over what is written; [N, num_heads * head_dim].

        q: [N, num_heads * head_dim] with heads in the order [group_size, num_kv_heads], so that
        query heads sharing a key head become extra query rows of it: keys and values are not
        repeated, and the queries are copied once where a lane has several. The result has the same
        order.
        """
        if plan.pad is not None:
            q = q.index_select(0, plan.pad)
        if len(plan.groups) == 1:
            out = self._attend_group(layer, q, plan.groups[0])
        else:
            out = torch.cat(
                [
                    self._attend_group(layer, q.narrow(0, g.first_row, g.lanes * g.rows), g)
                    for g in plan.groups
                ]
            )
        return out if plan.restore is None else out.index_select(0, plan.restore)

    def _attend_group(self, layer: int, q: torch.Tensor, group: AttentionGroup) -> torch.Tensor:
        keys, values = self._keys_values(layer, group)
        shape = (group.lanes, group.rows * self._group_size, self._num_kv_heads, self._head_dim)
        out = F.scaled_dot_product_attention(
            q.reshape(shape).transpose(1, 2), keys, values, attn_mask=group.mask
        )
        return out.transpose(1, 2).reshape(group.lanes * group.rows, -1)

    def _mask(self, group: GroupLayout) -> torch.Tensor | None:
        if group.uniform:
            return None
        rows = self._capacity - 1 - np.repeat(group.query_positions.ravel(), self._group_size)
        masks = self._masks[:, : group.context].index_select(0, to_device(rows, self.device))
        return masks.view(len(group.slots), 1, -1, group.context)

    @property
    @abstractmethod
    def addresses(self) -> Addresses:
        """Where keys and values lie; they stay there as long as the cache is open."""

    @abstractmethod
    def units(
        self, batch: ForwardBatch, ends: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The units of :attr:`addresses` that hold a batch's sequences, contiguous [B, units].

        `ends` [B]: tokens that they will have after further batches with the same units; those of
        this batch unless given. Raises ValueError for a slot or position that does not exist.
        """

    @abstractmethod
    def _destination(
        self, batch: ForwardBatch
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...] | None]:
        """Where `write` puts the rows of the batch: `write_index`, `write_views` of the plan."""

    @abstractmethod
    def _source(self, slots: NDArray[np.int64], context: int) -> tuple[torch.Tensor, ...]:
        """Where the first `context` keys and values of these slots are: a group's `source`."""

    @abstractmethod
    def _keys_values(self, layer: int, group: AttentionGroup) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a group, each [lanes, num_kv_heads, context, head_dim]."""


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
        flat = _typed(runs.tensor(), dtype, layout.runs_bytes)
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
            self._places = _typed(store.tensor(), dtype, layout.store_bytes).as_strided(
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

    @property
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
        self.pool = _typed(pool, dtype, layout.pool_bytes).view(layout.pool_shape)
        self._blocks = list(self.pool.unbind(0))
        self._rows = [layer.view((num_blocks + 1) * block_size, -1) for layer in self._blocks]
        made = table is None
        if table is None:
            table = torch.empty(layout.table_bytes, dtype=torch.uint8)
        entries = _typed(table, torch.int32, layout.table_bytes).view(layout.table_shape)
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

    @property
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


def _typed(buffer: torch.Tensor, dtype: torch.dtype, nbytes: int) -> torch.Tensor:
    """The first `nbytes` bytes of a flat uint8 buffer as `dtype`; ValueError if it has fewer."""
    if buffer.numel() < nbytes:
        raise ValueError(f"a KV cache needs {nbytes} bytes here, not {buffer.numel()}")
    return buffer[:nbytes].view(dtype)
