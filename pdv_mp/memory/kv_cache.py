"""What a KV cache is to those who compute with it; two kinds of it have files of their own."""

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
from pdv_mp.model.batch import ForwardBatch, to_device

if TYPE_CHECKING:
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
        slot, position = max(batch.slots.tolist()), batch.context - 1
        if slot >= self.num_slots:
            raise ValueError(f"slot {slot} of {self.num_slots} does not exist")
        if position >= self.max_model_len:
            raise ValueError(f"position {position} lies beyond max_model_len {self.max_model_len}")

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


def typed(buffer: torch.Tensor, dtype: torch.dtype, nbytes: int) -> torch.Tensor:
    """The first `nbytes` bytes of a flat uint8 buffer as `dtype`; ValueError if it has fewer."""
    if buffer.numel() < nbytes:
        raise ValueError(f"a KV cache needs {nbytes} bytes here, not {buffer.numel()}")
    return buffer[:nbytes].view(dtype)
