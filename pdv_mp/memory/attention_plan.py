"""How the rows of a ragged batch are laid out for padded attention, decided once per forward.

Long runs of query rows are cut into tiles, tiles of similar shape form groups, and each group is
one call of scaled dot product attention over padded rows. A uniform batch is one group and its
rows are not moved at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from pdv_mp.model.batch import ForwardBatch

    Int64Array = NDArray[np.int64]

TILE_ROWS = 128
"""Query rows of one sequence per tile: bounds the mask and the masked-out upper triangle."""

_SHORT_ROWS = 16
"""Up to here attention is bound by reading keys and values, beyond it by arithmetic."""

_CALL_COST = 2048
"""Padded (query row, key) pairs that cost about as much as one more attention call."""


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """One attention call: `lanes` sequences with `rows` padded query rows and `context` keys each.

    `first_row` is the group's offset among the padded rows. The keys of lane i are those of slot
    `first_slot` + i when `gather` is None; otherwise the cache finds them through `gather`. `mask`
    is added to the scores: [lanes, 1, rows * group_size, context], None when all is visible.
    """

    lanes: int
    rows: int
    context: int
    first_row: int
    first_slot: int
    gather: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Layout of one batch, shared by all layers.

    `write_index` says where the batch's N rows of keys and values go. `pad` picks a row of the
    batch for each padded row, `restore` a padded row for each row of the batch; both are None when
    the padded rows are the batch's rows in their order.
    """

    write_index: tuple[torch.Tensor, ...]
    groups: tuple[AttentionGroup, ...]
    pad: torch.Tensor | None
    restore: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """A group before it is bound to a cache; all arrays are int64.

    `slots` [lanes]: the slot of each lane; `query_positions` [lanes, rows]: position of each padded
    row, 0 for padding, which therefore sees one key and never yields NaN. `dense` says that the
    slots are consecutive. Lanes that only bridge a gap between slots hold padding alone.
    """

    slots: Int64Array
    query_positions: Int64Array
    context: int
    dense: bool
    uniform: bool


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Groups of a batch with `pad` and `restore` as in AttentionPlan."""

    groups: tuple[GroupLayout, ...]
    pad: Int64Array | None
    restore: Int64Array | None


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Runs of at most TILE_ROWS query rows: slot, first position, rows, first row in the batch."""

    slots: Int64Array
    starts: Int64Array
    lens: Int64Array
    first_rows: Int64Array

    def take(self, index: Int64Array) -> _Tiles:
        return _Tiles(
            self.slots[index], self.starts[index], self.lens[index], self.first_rows[index]
        )


def layout_batch(batch: ForwardBatch, views: bool) -> BatchLayout:
    """Lay out a batch; `views`: consecutive slots can be read without a copy."""
    tiles = _cut(batch)
    groups = _group(tiles)
    if len(groups) == 1 and bool(np.all(tiles.lens == tiles.lens[0])):
        columns = np.arange(tiles.lens[0])
        positions = tiles.starts[:, None] + columns
        context = int(positions[:, -1].max()) + 1
        uniform = len(columns) == 1 and int(tiles.starts.min()) + 1 == context
        dense = views and bool(np.all(np.diff(tiles.slots) == 1))
        if dense or not views:
            group = GroupLayout(tiles.slots, positions, context, dense, uniform)
            return BatchLayout((group,), None, None)
    layouts = []
    pads = []
    restore = np.empty(batch.num_rows, dtype=np.int64)
    offset = 0
    for index in groups:
        layout, pad, lanes, valid = _lay_out_group(tiles.take(index), views)
        lane, column = np.nonzero(valid)
        rows = pad.shape[1]
        restore[pad[lanes[lane], column]] = offset + lanes[lane] * rows + column
        offset += pad.size
        layouts.append(layout)
        pads.append(pad.ravel())
    pad_all = np.concatenate(pads)
    if len(pad_all) == batch.num_rows and np.array_equal(pad_all, np.arange(batch.num_rows)):
        return BatchLayout(tuple(layouts), None, None)
    return BatchLayout(tuple(layouts), pad_all, restore)


def _cut(batch: ForwardBatch) -> _Tiles:
    lens = batch.query_lens
    first_rows = np.cumsum(lens) - lens
    if lens.max() <= TILE_ROWS:
        return _Tiles(batch.slots, batch.start_positions, lens, first_rows)
    counts = -(-lens // TILE_ROWS)
    sequence = np.repeat(np.arange(len(lens)), counts)
    skipped = (np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)) * TILE_ROWS
    return _Tiles(
        batch.slots[sequence],
        batch.start_positions[sequence] + skipped,
        np.minimum(lens[sequence] - skipped, TILE_ROWS),
        first_rows[sequence] + skipped,
    )


def _group(tiles: _Tiles) -> list[Int64Array]:
    """Partition tiles so that padding at most doubles the work (adds a third for long rows).

    Tiles of one sequence never share a group: their keys would have to be copied.
    """
    contexts = tiles.starts + tiles.lens
    count = len(contexts)
    work = tiles.lens * contexts
    rows = int(tiles.lens.max())
    padded = count * rows * int(contexts.max())
    cut = count > 1 and len(set(tiles.slots.tolist())) != count
    if not cut and padded <= _limit(rows, int(work.sum())):
        return [np.arange(count)]
    groups: list[list[int]] = []
    slots: set[int] = set()
    rows = context = useful = 0
    for tile in np.lexsort((contexts, tiles.lens))[::-1].tolist():
        slot, tile_work = int(tiles.slots[tile]), int(work[tile])
        widest = max(context, int(contexts[tile]))
        fits = (
            groups
            and slot not in slots
            and (len(slots) + 1) * rows * widest <= _limit(rows, useful + tile_work)
        )
        if fits:
            groups[-1].append(tile)
            slots.add(slot)
            context, useful = widest, useful + tile_work
        else:
            groups.append([tile])
            slots = {slot}
            rows, context, useful = int(tiles.lens[tile]), int(contexts[tile]), tile_work
    return [np.array(group, dtype=np.int64) for group in groups]


def _limit(rows: int, useful: int) -> float:
    return (2.0 if rows <= _SHORT_ROWS else 4 / 3) * useful + _CALL_COST


def _lay_out_group(
    tiles: _Tiles, views: bool
) -> tuple[GroupLayout, Int64Array, Int64Array, NDArray[np.bool_]]:
    """The layout, the pad index [lanes, rows], each tile's lane and its valid columns."""
    count, rows = len(tiles.slots), int(tiles.lens.max())
    lowest, highest = int(tiles.slots.min()), int(tiles.slots.max())
    dense = views and 2 * (highest - lowest + 1) <= 3 * count
    if dense:
        slots = np.arange(lowest, highest + 1)
        lanes = tiles.slots - lowest
    else:
        slots = tiles.slots
        lanes = np.arange(count)
    columns = np.arange(rows)
    valid = columns < tiles.lens[:, None]
    pad = np.zeros((len(slots), rows), dtype=np.int64)
    positions = np.zeros((len(slots), rows), dtype=np.int64)
    pad[lanes] = np.where(valid, tiles.first_rows[:, None] + columns, 0)
    positions[lanes] = np.where(valid, tiles.starts[:, None] + columns, 0)
    contexts = tiles.starts + tiles.lens
    context = int(contexts.max())
    uniform = rows == 1 and int(contexts.min()) == context
    return GroupLayout(slots, positions, context, dense, uniform), pad, lanes, valid
