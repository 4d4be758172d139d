"""How the rows of a ragged batch are laid out for padded attention, decided once per forward.

Long runs of query rows are cut into tiles, tiles of similar shape form groups, and each group is
one call of scaled dot product attention over padded rows. A uniform batch is one group and its
rows are not moved at all. Work is counted in pairs of a query row and a key.
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


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """One attention call: `lanes` sequences with `rows` padded query rows and `context` keys each.

    `first_row` is the group's offset among the padded rows; `slots` [lanes] int64 names the slot of
    each lane. `source` is where the cache finds their keys and values: views of them, two for each
    layer, or the index of the blocks to gather. `mask` is added to the scores:
    [lanes, 1, rows * group_size, context], None when all is visible.
    """

    lanes: int
    rows: int
    context: int
    first_row: int
    slots: Int64Array
    source: tuple[torch.Tensor, ...]
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Layout of one batch, shared by all layers.

    The batch's N rows of keys and values go to the rows that `write_index` addresses or, where they
    are one run, into `write_views`, one for each layer. `pad` picks a row of the batch for each
    padded row, `restore` a padded row for each row of the batch; both are None when the padded rows
    are the batch's rows in their order.
    """

    write_index: tuple[torch.Tensor, ...]
    write_views: tuple[torch.Tensor, ...] | None
    groups: tuple[AttentionGroup, ...]
    pad: torch.Tensor | None
    restore: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """A group before it is bound to a cache; all arrays are int64.

    `slots` [lanes]: the slot of each lane; `query_positions` [lanes, rows]: position of each padded
    row, 0 for padding, which therefore sees one key and never yields NaN. Lanes that only bridge a
    gap between slots hold padding alone. `uniform`: one row per lane, and it sees all keys.
    """

    slots: Int64Array
    query_positions: Int64Array
    context: int
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


def layout_batch(batch: ForwardBatch, consecutive: bool, call_cost: int) -> BatchLayout:
    """Lay out a batch.

    `consecutive`: the slots of a group must be, so that their keys are a view. `call_cost`: pairs
    that take as long as one more attention call; padding is added where it costs less than that.
    """
    tiles = _cut(batch)
    groups = _group(tiles, consecutive, call_cost)
    if len(groups) == 1 and _in_place(tiles, consecutive):
        positions = tiles.starts[:, None] + np.arange(tiles.lens[0])
        context = int(positions[:, -1].max()) + 1
        uniform = positions.shape[1] == 1 and int(positions.min()) + 1 == context
        return BatchLayout((GroupLayout(tiles.slots, positions, context, uniform),), None, None)
    layouts = []
    pads = []
    restore = np.empty(batch.num_rows, dtype=np.int64)
    offset = 0
    for index in groups:
        members = tiles.take(index)
        layout, lanes = _lay_out_group(members, consecutive)
        rows = layout.query_positions.shape[1]
        pad = np.zeros(layout.query_positions.shape, dtype=np.int64)
        valid = np.arange(rows) < members.lens[:, None]
        pad[lanes] = np.where(valid, members.first_rows[:, None] + np.arange(rows), 0)
        tile, column = np.nonzero(valid)
        restore[members.first_rows[tile] + column] = offset + lanes[tile] * rows + column
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


def _in_place(tiles: _Tiles, consecutive: bool) -> bool:
    """Whether the rows of a single group can be used in the order of the batch."""
    same = bool(np.all(tiles.lens == tiles.lens[0]))
    return same and (not consecutive or bool(np.all(np.diff(tiles.slots) == 1)))


def _group(tiles: _Tiles, consecutive: bool, call_cost: int) -> list[Int64Array]:
    """Partition tiles, in the order of slots or of shapes, where a further call pays.

    Tiles of one sequence never share a group: their keys would have to be copied.
    """
    contexts = tiles.starts + tiles.lens
    work = tiles.lens * contexts
    count = len(work)
    span = int(tiles.slots.max() - tiles.slots.min()) + 1 if consecutive else count
    padded = span * int(tiles.lens.max()) * int(contexts.max())
    distinct = count == 1 or len(np.unique(tiles.slots)) == count
    if distinct and 4 * padded <= 5 * int(work.sum()) + 4 * call_cost:
        return [np.arange(count)]
    order = np.lexsort(
        (tiles.starts, tiles.slots) if consecutive else (contexts, tiles.lens)
    ).tolist()
    columns = (tiles.slots.tolist(), tiles.lens.tolist(), contexts.tolist())
    groups: list[list[int]] = []
    members: set[int] = set()
    first = rows = context = cost = 0
    for tile in order:
        slot, length, reach = (column[tile] for column in columns)
        lanes = slot - first + 1 if consecutive else len(members) + 1
        merged = lanes * max(rows, length) * max(context, reach)
        if groups and slot not in members and merged <= cost + length * reach + call_cost:
            groups[-1].append(tile)
            members.add(slot)
            rows, context, cost = max(rows, length), max(context, reach), merged
        else:
            groups.append([tile])
            members = {slot}
            first, rows, context, cost = slot, length, reach, length * reach
    return [np.array(group, dtype=np.int64) for group in groups]


def _lay_out_group(tiles: _Tiles, consecutive: bool) -> tuple[GroupLayout, Int64Array]:
    """The layout of a group, and the lane of each of its tiles."""
    if consecutive:
        lowest = int(tiles.slots.min())
        slots = np.arange(lowest, int(tiles.slots.max()) + 1)
        lanes = tiles.slots - lowest
    else:
        slots = tiles.slots
        lanes = np.arange(len(slots))
    rows = int(tiles.lens.max())
    columns = np.arange(rows)
    positions = np.zeros((len(slots), rows), dtype=np.int64)
    positions[lanes] = np.where(columns < tiles.lens[:, None], tiles.starts[:, None] + columns, 0)
    contexts = tiles.starts + tiles.lens
    context = int(contexts.max())
    uniform = rows == 1 and int(contexts.min()) == context
    return GroupLayout(slots, positions, context, uniform), lanes
