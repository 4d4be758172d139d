"""Batches of fixed shape: lanes of equally many rows, of which some are padding.

Padding is written to the block that nobody owns and attends to one key, so it changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.language_model import LanguageModel

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96, 128)
"""Numbers of lanes; a batch takes the smallest that holds it."""

Column = npt.NDArray[np.int64]
Fields = dict[str, tuple[tuple[int, ...], torch.dtype]]


def bucket_of(sequences: int) -> int | None:
    """The lanes for so many sequences, None if they are too many."""
    return next((lanes for lanes in BUCKETS if lanes >= sequences), None)


def table_fields(cache: PagedKVCache, lanes: int) -> Fields:
    """The inputs that all steps have."""
    return {"tables": ((lanes, cache.max_blocks), torch.int32)}


def fill_tables(cache: PagedKVCache, host: dict[str, npt.NDArray[Any]], slots: Column) -> None:
    """The block tables of the sequences in these slots; other lanes have the dummy block alone."""
    host["tables"][: len(slots)] = cache.block_table[slots]
    host["tables"][len(slots) :] = cache.dummy_block


def fill_rows(
    cache: PagedKVCache,
    positions: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    slots: Column,
    starts: Column,
    lengths: Column,
) -> None:
    """Fill ``positions`` and ``places`` [lanes, Q]: of sequence b, rows 0 .. lengths[b] - 1 are at
    positions from ``starts[b]`` on, and the rest is padding.

    Raises ValueError for a position that its slot has no block for.
    """
    columns = np.arange(positions.shape[1])
    used = columns < lengths[:, None]
    positions[:] = 0
    places[:] = cache.dummy_block * cache.block_size
    at = (starts[:, None] + columns)[used]
    if len(at):
        positions[: len(slots)][used] = at
        places[: len(slots)][used] = cache.row_places(slots.repeat(lengths), at)


def forward(
    model: LanguageModel,
    cache: PagedKVCache,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    places: torch.Tensor,
    tables: torch.Tensor,
    logit_rows: torch.Tensor | None,
) -> torch.Tensor:
    """Logits of a batch that the device alone knows: token_ids, positions, places int64 [L * Q]."""
    batch = ForwardBatch.on_device(token_ids, positions, logit_rows, cache.device)
    return model.forward(batch, cache, cache.static_plan(tables, positions, places))
