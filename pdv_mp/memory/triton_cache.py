"""The paged KV cache whose attention is a Triton kernel: no gathers, no masks, no padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pdv_mp.memory.attention_plan import AttentionPlan
from pdv_mp.memory.blocks import blocks_for
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.batch import ForwardBatch, to_device
from pdv_mp.model.kernels.paged_attention import (
    Tiles,
    count_splits,
    paged_attention,
    tile_rows,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HOST_PROCESSORS = 4
"""In place of a GPU's multiprocessors where Triton's interpreter computes."""


@dataclass(frozen=True, slots=True)
class PagedPlan(AttentionPlan):
    """A batch for the kernel; the columns are those of its ``paged_attention``.

    ``places`` int64 [N]: where the rows of keys and values go, ``write_index`` in other words.
    """

    places: torch.Tensor
    tiles: Tiles
    positions: torch.Tensor
    tables: torch.Tensor
    splits: int


class TritonKVCache(PagedKVCache):
    """As :class:`PagedKVCache`, whose arguments it takes."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._processors = _HOST_PROCESSORS
        # Made before a graph is recorded, and part of no recording.
        self._static_tiles: dict[tuple[int, int], Tiles] = {}
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            self._processors = properties.multi_processor_count

    def layer(self, index: int) -> torch.Tensor:
        """Keys and values of a layer: [num_blocks + 1, block_size, 2, num_kv_heads, head_dim]."""
        return self._blocks[index]

    def plan(self, batch: ForwardBatch) -> PagedPlan:
        """Lay out a batch. Raises ValueError for a slot or position that does not exist."""
        self._check_batch(batch)
        places = self.row_places(batch.row_slots, batch.row_positions)
        rows = tile_rows(int(batch.query_lens.max()), self._group_size)
        first, last, lane = _cut(batch.query_lens, rows)
        keys = int(batch.row_positions.max()) + 1
        tables = self.block_table[batch.slots, : blocks_for(keys, self.block_size)]
        # One copy to the device for all.
        columns = [places, first, last, lane, tables.ravel().astype(np.int64)]
        sent = to_device(np.concatenate(columns), self.device)
        parts = torch.split(sent, [len(column) for column in columns])
        return self._plan(
            parts[0],
            Tiles(parts[1], parts[2], parts[3], rows),
            batch.positions,
            parts[4].view(tables.shape),
            keys,
        )

    def advance(self, plan: AttentionPlan, batch: ForwardBatch) -> PagedPlan:
        """Lay out a batch made by `ForwardBatch.advance`. Raises ValueError as `plan` does."""
        return self.plan(batch)

    def static_plan(
        self, tables: torch.Tensor, positions: torch.Tensor, places: torch.Tensor
    ) -> PagedPlan:
        lanes = len(tables)
        count = len(positions) // lanes
        tiles = self._static_tiles.get((lanes, count))
        if tiles is None:
            tiles = self._static_tiles[lanes, count] = self._cut_evenly(lanes, count)
        return self._plan(places, tiles, positions, tables, self.max_model_len)

    def _cut_evenly(self, lanes: int, count: int) -> Tiles:
        """Tiles of lanes with ``count`` rows each."""
        rows = tile_rows(count, self._group_size)
        lane, first = torch.meshgrid(
            torch.arange(lanes, device=self.device),
            torch.arange(0, count, rows, device=self.device),
            indexing="ij",
        )
        start = lane * count
        return Tiles(
            (start + first).flatten(),
            (start + (first + rows).clamp(max=count)).flatten(),
            lane.flatten(),
            rows,
        )

    def attend(self, layer: int, q: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Causal attention of N query rows over what is written; q and result as in KVCache.

        Raises TypeError for a plan that this cache has not made.
        """
        if not isinstance(plan, PagedPlan):
            raise TypeError(f"a {type(plan).__name__} is not a plan of this cache")
        if q.stride(1) != 1:
            q = q.contiguous()
        return paged_attention(
            q, self._blocks[layer], plan.tiles, plan.positions, plan.tables, plan.splits
        )

    def _plan(
        self,
        places: torch.Tensor,
        tiles: Tiles,
        positions: torch.Tensor,
        tables: torch.Tensor,
        keys: int,
    ) -> PagedPlan:
        splits = count_splits(len(tiles.first), self._num_kv_heads, self._processors, keys)
        return PagedPlan(
            write_index=(places,),
            write_views=None,
            groups=(),
            pad=None,
            restore=None,
            places=places,
            tiles=tiles,
            positions=positions,
            tables=tables,
            splits=splits,
        )


def _cut(
    query_lens: NDArray[np.int64], rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Tiles of at most ``rows`` rows: the first row of each, the one after its last, its lane."""
    counts = -(-query_lens // rows)
    ends = np.cumsum(query_lens)
    lane = np.repeat(np.arange(len(query_lens)), counts)
    skipped = (np.arange(len(lane)) - np.repeat(np.cumsum(counts) - counts, counts)) * rows
    first = (ends - query_lens)[lane] + skipped
    return first, np.minimum(first + rows, ends[lane]), lane
