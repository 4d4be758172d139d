"""Memory and tables of the two KV caches; what they compute is tested with the transformer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pdv_mp.memory.attention_plan import AttentionPlan
from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.architecture import ModelConfig, RopeConfig
from pdv_mp.model.batch import ForwardBatch

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=50,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=16,
    rms_norm_eps=1e-5,
    rope=RopeConfig(10000.0),
    max_position_embeddings=4096,
)
ROW = 2 * CONFIG.num_kv_heads * CONFIG.head_dim


def batch_of(*sequences: tuple[int, int, int]) -> ForwardBatch:
    slots, starts, lens = (np.array(column) for column in zip(*sequences, strict=True))
    return ForwardBatch.build(
        np.zeros(lens.sum(), dtype=np.int64), lens, starts, slots, None, "cpu"
    )


def reference(
    q: torch.Tensor, rows: dict[tuple[int, int], torch.Tensor], batch: ForwardBatch
) -> torch.Tensor:
    """Attention row by row in float64, from the definition (arXiv 1706.03762)."""
    out = []
    kv_heads, dim = CONFIG.num_kv_heads, CONFIG.head_dim
    columns = zip(q, batch.row_slots.tolist(), batch.row_positions.tolist(), strict=True)
    for query, slot, position in columns:
        kv = torch.stack([rows[slot, p] for p in range(position + 1)]).double()
        keys, values = kv.view(-1, 2, kv_heads, dim).unbind(1)
        heads = query.double().view(CONFIG.group_size, kv_heads, dim)
        weights = torch.einsum("ghd,phd->ghp", heads, keys).div(dim**0.5).softmax(-1)
        out.append(torch.einsum("ghp,phd->ghd", weights, values).reshape(-1))
    return torch.stack(out).float()


@pytest.mark.parametrize("kind", ["contiguous", "paged"])
def test_attention_from_its_definition(kind: str) -> None:
    cache = make(kind)
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[tuple[int, int], torch.Tensor]] = [{}, {}]
    for batch in (
        batch_of((4, 0, 20), (1, 0, 7), (2, 0, 1)),
        batch_of((1, 7, 3), (4, 20, 5), (2, 1, 1)),
        batch_of((4, 21, 1)),
        batch_of((1, 8, 4), (2, 2, 4)),
    ):
        plan = cache.plan(batch)
        for layer in (0, 1):
            kv = torch.randn(batch.num_rows, ROW, generator=generator)
            q = torch.randn(batch.num_rows, 32, generator=generator)
            cache.write(layer, kv, plan)
            written = zip(batch.row_slots.tolist(), batch.row_positions.tolist(), strict=True)
            rows[layer].update(zip(written, kv, strict=True))
            out = cache.attend(layer, q, plan)
            assert torch.allclose(out, reference(q, rows[layer], batch), atol=1e-5)


def make(kind: str) -> ContiguousKVCache | PagedKVCache:
    if kind == "contiguous":
        return ContiguousKVCache(CONFIG, 6, 40, torch.float32, 16)
    cache = PagedKVCache(CONFIG, 18, 16, 6, 40, torch.float32, "cpu")
    for slot in range(6):
        cache.set_blocks(slot, [slot, 17 - slot, 6])
    return cache


def assert_same(left: AttentionPlan, right: AttentionPlan) -> None:
    def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
        if one is None or other is None:
            return one is other
        return one.data_ptr() == other.data_ptr() or torch.equal(one, other)

    for mine, theirs in (
        (left.write_index, right.write_index),
        (left.write_views or (), right.write_views or ()),
        ((left.pad, left.restore), (right.pad, right.restore)),
        (left.groups, right.groups),
    ):
        assert len(mine) == len(theirs)
    assert all(map(same, left.write_index, right.write_index))
    assert all(map(same, left.write_views or (), right.write_views or ()))
    assert same(left.pad, right.pad)
    assert same(left.restore, right.restore)
    for mine, theirs in zip(left.groups, right.groups, strict=True):
        for name in ("lanes", "rows", "context", "first_row"):
            assert getattr(mine, name) == getattr(theirs, name)
        assert np.array_equal(mine.slots, theirs.slots)
        assert [part.shape for part in mine.source] == [part.shape for part in theirs.source]
        assert all(map(same, mine.source, theirs.source))
        assert same(mine.mask, theirs.mask)


@pytest.mark.parametrize("kind", ["contiguous", "paged"])
@pytest.mark.parametrize(
    "sequences",
    [
        [(3, 9, 1)],
        [(1, 12, 1), (2, 12, 1)],
        [(4, 3, 1), (2, 20, 1), (3, 14, 1)],
        [(0, 0, 1), (1, 30, 1), (2, 7, 1), (3, 15, 1), (4, 16, 1), (5, 1, 1)],
        [(5, 11, 2), (4, 13, 1), (3, 0, 7)],
    ],
)
def test_an_advanced_plan_is_the_plan_of_the_next_batch(
    kind: str, sequences: list[tuple[int, int, int]]
) -> None:
    cache = make(kind)
    batch = batch_of(*sequences)
    plan = cache.plan(batch)
    ends = [(slot, start + count) for slot, start, count in sequences]
    for step in range(9):
        batch = batch.advance(np.arange(len(sequences)))
        plan = cache.advance(plan, batch)
        fresh = batch_of(*((slot, end + step, 1) for slot, end in ends))
        assert_same(plan, cache.plan(fresh))
        assert batch.token_ids.tolist() == list(range(len(sequences)))
        assert torch.equal(batch.positions, fresh.positions)
        for name in ("query_lens", "start_positions", "slots", "row_positions", "row_slots"):
            assert np.array_equal(getattr(batch, name), getattr(fresh, name))


@pytest.mark.parametrize("kind", ["contiguous", "paged"])
def test_advancing_beyond_the_sequence_is_refused(kind: str) -> None:
    cache = make(kind)
    batch = batch_of((2, 38, 1), (1, 5, 1))
    plan = cache.plan(batch)
    batch = batch.advance(np.zeros(2, dtype=np.int64))
    plan = cache.advance(plan, batch)
    with pytest.raises(ValueError, match="position 40 lies beyond max_model_len 40"):
        cache.advance(plan, batch.advance(np.zeros(2, dtype=np.int64)))


def test_advancing_beyond_the_blocks_is_refused() -> None:
    cache = PagedKVCache(CONFIG, 8, 4, 2, 16, torch.float32, "cpu")
    cache.set_blocks(1, [3])
    batch = batch_of((1, 3, 1))
    plan = cache.plan(batch)
    with pytest.raises(ValueError, match="slot 1 has no block for position 4"):
        cache.advance(plan, batch.advance(np.zeros(1, dtype=np.int64)))


def test_contiguous_memory_follows_what_is_written() -> None:
    slots, length = 1000, 4096
    cache = ContiguousKVCache(CONFIG, slots, length, torch.float32, 16)
    assert cache.committed_bytes() == 0
    for slot in (0, 999):
        batch = batch_of((slot, 0, 100))
        plan = cache.plan(batch)
        for layer in range(CONFIG.num_layers):
            cache.write(layer, torch.ones(100, ROW), plan)
    used = cache.committed_bytes()
    assert 2 * 100 * CONFIG.kv_bytes_per_token("float32") <= used < 1 << 20
    cache.discard(999)
    assert cache.committed_bytes() == used // 2
    keys, _ = cache._keys_values(1, cache.plan(batch_of((0, 99, 1))).groups[0])
    assert bool((keys == 1).all()), "the neighbour keeps its rows"
    with pytest.raises(ValueError, match="slot 1000 of 1000"):
        cache.discard(1000)
    cache.close()


def test_padding_never_yields_nan() -> None:
    cache = ContiguousKVCache(CONFIG, 8, 64, torch.float32, 16)
    plan = cache.plan(batch_of((0, 0, 1), (3, 30, 9), (1, 5, 2)))
    q = torch.randn(12, 32)
    assert plan.pad is not None
    for group in plan.groups:
        rows = q.index_select(0, plan.pad)[: group.lanes * group.rows]
        assert torch.isfinite(cache._attend_group(0, rows, group)).all()


def test_writes_touch_only_the_rows_of_the_batch() -> None:
    cache = PagedKVCache(CONFIG, 8, 4, 2, 16, torch.float32, "cpu")
    cache.set_blocks(0, [5, 2])
    cache.set_blocks(1, [7])
    plan = cache.plan(batch_of((0, 3, 2), (1, 0, 1)))
    cache.write(1, torch.ones(3, ROW), plan)
    written = cache.pool.flatten(3).ne(0).any(-1).nonzero().tolist()
    assert written == [[1, 2, 0], [1, 5, 3], [1, 7, 0]]


def test_the_block_table() -> None:
    cache = PagedKVCache(CONFIG, 8, 4, 2, 16, torch.float32, "cpu")
    assert cache.block_table.dtype == np.int32
    assert cache.block_table.tolist() == [[8] * 4] * 2
    cache.set_blocks(1, [3, 0])
    assert cache.block_table.tolist() == [[8] * 4, [3, 0, 8, 8]]
    with pytest.raises(ValueError, match="slot 1 has no block for position 8"):
        cache.plan(batch_of((1, 6, 3)))
    cache.clear(1)
    assert cache.block_table.tolist() == [[8] * 4] * 2
    for wrong in ([8], [-1]):
        with pytest.raises(ValueError, match=r"must lie in 0 \.\. 7"):
            cache.set_blocks(0, wrong)
    with pytest.raises(ValueError, match="exceed the 4 of a sequence"):
        cache.set_blocks(0, [0, 1, 2, 3, 4])


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        ContiguousKVCache(CONFIG, 0, 16, torch.float32, 16)
    with pytest.raises(ValueError, match="num_blocks must be positive"):
        PagedKVCache(CONFIG, 0, 4, 2, 16, torch.float32, "cpu")


@pytest.mark.parametrize("into", ["contiguous", "paged"])
@pytest.mark.parametrize("kind", ["contiguous", "paged"])
def test_rows_go_from_one_cache_to_another(kind: str, into: str) -> None:
    source, target = make(kind), make(into)
    generator = torch.Generator().manual_seed(1)
    written = torch.randn(CONFIG.num_layers, 37, ROW, generator=generator)
    plan = source.plan(batch_of((4, 0, 37)))
    for layer in range(CONFIG.num_layers):
        source.write(layer, written[layer], plan)
    rows = source.export_rows(4, 2, torch.empty(source.rows_shape(35)))
    assert torch.equal(rows.flatten(2), written[:, 2:])
    assert source.rows_bytes(35) == rows.nbytes == 35 * CONFIG.kv_bytes_per_token("float32")
    target.import_rows(1, 2, rows)
    assert torch.equal(target.export_rows(1, 2, torch.empty_like(rows)), rows)
    again = target.export_rows(1, 0, torch.empty(target.rows_shape(40)))
    assert not again[:, :2].any(), "rows before and after are untouched"
    assert not again[:, 37:].any()
    # What attention reads is what attention would have read there.
    one, other = (cache.plan(batch_of((slot, 36, 1))) for cache, slot in ((source, 4), (target, 1)))
    target.import_rows(1, 0, source.export_rows(4, 0, torch.empty(source.rows_shape(37))))
    q = torch.randn(1, 32, generator=generator)
    for layer in range(CONFIG.num_layers):
        assert torch.allclose(source.attend(layer, q, one), target.attend(layer, q, other))


@pytest.mark.parametrize("kind", ["contiguous", "paged"])
def test_rows_that_do_not_exist_are_refused(kind: str) -> None:
    cache = make(kind)
    rows = torch.zeros(cache.rows_shape(3))
    for slot, start, message in (
        (6, 0, "slot 6 of 6"),
        (0, 38, "rows 38 to 41 lie beyond"),
        (0, -1, "rows -1 to 2 lie beyond"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.import_rows(slot, start, rows)
        with pytest.raises(ValueError, match=message):
            cache.export_rows(slot, start, rows)
    with pytest.raises(ValueError, match="not of this cache"):
        cache.import_rows(0, 0, torch.zeros(1, 3, 2, 2, 8))


def test_rows_without_a_block_are_refused() -> None:
    cache = PagedKVCache(CONFIG, 8, 4, 2, 16, torch.float32, "cpu")
    cache.set_blocks(1, [3])
    with pytest.raises(ValueError, match="slot 1 has no block for position 4"):
        cache.import_rows(1, 3, torch.zeros(cache.rows_shape(2)))
