"""Attention of ragged queries over keys and values in blocks, as Triton kernels.

A tile is a run of query rows of one sequence. A program takes a tile and a key head, for which all
query heads that share the key head are rows of one matrix: up to ROWS of them, at least 16, which
the tensor cores want. It goes over the keys with the softmax kept as it goes (arXiv 2205.14135).
With ``splits`` > 1 the keys of a tile are divided among as many programs, and a second kernel joins
their parts (arXiv 2311.01282): so few rows of a long sequence keep a whole GPU busy.

Nothing depends on values of the batch but the contents of tensors, so that a launch can be captured
in a CUDA graph and replayed for other positions and tables. Scores and sums are float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

MIN_ROWS = 16
"""Least rows of a program's matrix."""

MAX_ROWS = 64
"""Most rows of a program's matrix, unless the heads of one position are more."""

MAX_SPLITS = 32

_KEYS = {2: 64, 4: 32}
"""Keys of a step, by bytes of a number."""

_LOG2_E = math.log2(math.e)


@triton.jit(do_not_specialize=["num_rows", "table_stride"])
def _attend(
    query,
    pool,
    out,
    parts,
    part_logs,
    tile_first,
    tile_last,
    tile_lane,
    positions,
    tables,
    scale,
    query_stride,
    out_stride,
    table_stride,
    num_rows,
    BLOCK_SIZE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    IN_PARTS: tl.constexpr,
):
    tile = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    first = tl.load(tile_first + tile)
    last = tl.load(tile_last + tile)
    lane = tl.load(tile_lane + tile)

    packed = tl.arange(0, ROWS)
    row = first + packed // GROUP
    group = packed % GROUP
    valid = (packed < TILE * GROUP) & (row < last)
    dim = tl.arange(0, PADDED_DIM)
    in_head = dim < HEAD_DIM
    # Of the heads that share a key head the g-th is head g * KV_HEADS + that one.
    column = (group * KV_HEADS + head) * HEAD_DIM
    q = tl.load(
        query + (row * query_stride + column)[:, None] + dim[None, :],
        mask=valid[:, None] & in_head[None, :],
        other=0.0,
    )
    position = tl.load(positions + row, mask=valid, other=-1)
    keys = (tl.max(position, 0) + 1).to(tl.int32)
    share = tl.cdiv(tl.cdiv(keys, KEYS), tl.num_programs(2)) * KEYS
    begin = split * share
    end = tl.minimum(begin + share, keys)

    token_stride = 2 * KV_HEADS * HEAD_DIM
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        there = key < end
        block = tl.load(tables + lane * table_stride + key // BLOCK_SIZE, mask=there, other=0)
        token = block.to(tl.int64) * BLOCK_SIZE + key % BLOCK_SIZE
        place = token * token_stride + head * HEAD_DIM
        k = tl.load(
            pool + place[None, :] + dim[:, None],
            mask=there[None, :] & in_head[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision="ieee") * scale
        seen = there[None, :] & (key[None, :] <= position[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        better = tl.maximum(best, tl.max(scores, 1))
        # A row that has seen no key yet has no best score to subtract.
        offset = tl.where(better == float("-inf"), 0.0, better)
        weights = tl.exp2(scores - offset[:, None])
        decay = tl.exp2(best - offset)
        v = tl.load(
            pool + (place + KV_HEADS * HEAD_DIM)[:, None] + dim[None, :],
            mask=there[:, None] & in_head[None, :],
            other=0.0,
        )
        total = total * decay + tl.sum(weights, 1)
        acc = acc * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        best = better

    share_of_row = tl.where(total > 0, total, 1.0)
    result = acc / share_of_row[:, None]
    store = valid[:, None] & in_head[None, :]
    if IN_PARTS:
        entry = (split * num_rows + row) * (GROUP * KV_HEADS) + group * KV_HEADS + head
        tl.store(parts + entry[:, None] * HEAD_DIM + dim[None, :], result, mask=store)
        log = tl.where(total > 0, best + tl.log2(share_of_row), float("-inf"))
        tl.store(part_logs + entry, log, mask=valid)
    else:
        tl.store(
            out + (row * out_stride + column)[:, None] + dim[None, :],
            result.to(out.dtype.element_ty),
            mask=store,
        )


@triton.jit(do_not_specialize=["num_rows", "splits"])
def _join(
    parts,
    part_logs,
    out,
    out_stride,
    num_rows,
    num_heads,
    splits,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.arange(0, PADDED_SPLITS)
    there = split < splits
    entry = (split * num_rows + row) * num_heads + head
    log = tl.load(part_logs + entry, mask=there, other=float("-inf"))
    weights = tl.exp2(log - tl.max(log, 0))
    dim = tl.arange(0, PADDED_DIM)
    in_head = dim < HEAD_DIM
    values = tl.load(
        parts + entry[:, None] * HEAD_DIM + dim[None, :],
        mask=there[:, None] & in_head[None, :],
        other=0.0,
    )
    result = tl.sum(values * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(
        out + row * out_stride + head * HEAD_DIM + dim,
        result.to(out.dtype.element_ty),
        mask=in_head,
    )


@dataclass(frozen=True, slots=True)
class Tiles:
    """The rows of a batch cut into tiles, int64 [T] each on the device: tile t holds the rows
    ``first[t] .. last[t] - 1`` of the sequence in row ``lane[t]`` of the block tables, and no tile
    has more than ``rows``."""

    first: torch.Tensor
    last: torch.Tensor
    lane: torch.Tensor
    rows: int


def tile_rows(longest: int, group_size: int) -> int:
    """Query rows of a tile where no sequence has more than ``longest``: a power of two or the most
    that there may be, since a kernel is compiled for each."""
    return max(1, min(1 << (longest - 1).bit_length(), MAX_ROWS // group_size))


def count_splits(num_tiles: int, num_kv_heads: int, processors: int, keys: int) -> int:
    """Programs among which the keys of a tile are divided, so that two programs come to each of
    the GPU's ``processors``, and none has less to do than two steps over ``keys`` keys."""
    wanted = 2 * processors // (num_tiles * num_kv_heads)
    return max(1, min(wanted, MAX_SPLITS, keys // 128))


def paged_attention(
    query: torch.Tensor,
    pool: torch.Tensor,
    tiles: Tiles,
    positions: torch.Tensor,
    tables: torch.Tensor,
    splits: int,
) -> torch.Tensor:
    """Causal attention: [N, num_heads * head_dim], of the type of ``query``.

    ``query`` [N, num_heads * head_dim], any stride between rows, heads in the order [group_size,
    num_kv_heads]. ``pool`` [blocks, block_size, 2, num_kv_heads, head_dim], contiguous: one layer.
    ``positions`` int64 [N]: a row sees the keys at 0 .. its own. ``tables`` [L, max_blocks], any
    integers: the blocks of each lane in order; of a lane only those up to the largest position are
    read. float32, float16 and bfloat16; products of float32 are not shortened to TensorFloat32.
    """
    num_rows, width = query.shape
    _, block_size, _, num_kv_heads, head_dim = pool.shape
    group_size = width // (num_kv_heads * head_dim)
    out = torch.empty((num_rows, width), dtype=query.dtype, device=query.device)
    padded_dim = max(16, triton.next_power_of_2(head_dim))
    num_heads = width // head_dim
    parts = part_logs = out
    if splits > 1:
        shape = (splits, num_rows, num_heads)
        parts = torch.empty((*shape, head_dim), dtype=torch.float32, device=query.device)
        part_logs = torch.empty(shape, dtype=torch.float32, device=query.device)
    rows = max(MIN_ROWS, triton.next_power_of_2(tiles.rows * group_size))
    grid = (len(tiles.first), num_kv_heads, splits)
    wide = rows * padded_dim * query.element_size() > 64 * 128 * 2
    options: dict[str, Any] = {"num_warps": 8 if wide else 4, "num_stages": 3}
    _attend[grid](
        query,
        pool,
        out,
        parts,
        part_logs,
        tiles.first,
        tiles.last,
        tiles.lane,
        positions,
        tables,
        _LOG2_E / math.sqrt(head_dim),
        query.stride(0),
        out.stride(0),
        tables.stride(0),
        num_rows,
        BLOCK_SIZE=block_size,
        KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        PADDED_DIM=padded_dim,
        GROUP=group_size,
        TILE=tiles.rows,
        ROWS=rows,
        KEYS=_KEYS[query.element_size()],
        IN_PARTS=splits > 1,
        **options,
    )
    if splits > 1:
        _join[(num_rows, num_heads)](
            parts,
            part_logs,
            out,
            out.stride(0),
            num_rows,
            num_heads,
            splits,
            HEAD_DIM=head_dim,
            PADDED_DIM=padded_dim,
            PADDED_SPLITS=triton.next_power_of_2(splits),
            num_warps=1,
        )
    return out
