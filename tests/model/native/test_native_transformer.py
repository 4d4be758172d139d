"""What our compiled kernels promise beyond the right logits: bits, memory, threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_kernels import native_transformer

from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.loading import load_weights
from pdv_mp.model.native.library import PHASES
from pdv_mp.model.native.native_transformer import NativeTransformer
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.speculation.acceptance import accept
from pdv_mp.speculation.sampling import SamplingRows, SamplingTable

MAX_LEN = 200
SLOTS = 6
VOCABULARY = 127
"""Fewer ids than the model has: those that a pair has in common."""


@pytest.fixture(scope="module")
def native(make_checkpoint: Callable[..., Path]) -> NativeTransformer:
    # Sizes of which none is a multiple of a panel, and one of which leaves half a vector.
    folder = make_checkpoint("qwen3", hidden_size=72, intermediate_size=88, vocab_size=131)
    config = ModelConfig.from_folder(folder)
    return native_transformer(config, load_weights(config, folder, torch.float32, "cpu"), MAX_LEN)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def contiguous(native: NativeTransformer) -> KVCache:
    return ContiguousKVCache(native.config, SLOTS, MAX_LEN, torch.float32, 16)


def paged(native: NativeTransformer) -> PagedKVCache:
    blocks = -(-MAX_LEN // 8)
    cache = PagedKVCache(native.config, SLOTS * blocks, 8, SLOTS, MAX_LEN, torch.float32, "cpu")
    order = np.random.default_rng(1).permutation(SLOTS * blocks).reshape(SLOTS, blocks)
    for slot in range(SLOTS):
        cache.set_blocks(slot, order[slot].tolist())
    return cache


def tokens_of(sequence: int, length: int) -> np.ndarray:
    return np.random.default_rng(sequence).integers(0, 131, length)


def forward(
    native: NativeTransformer, cache: KVCache, pieces: list[tuple[int, int, int]]
) -> torch.Tensor:
    """Logits of (sequence, from, to) pieces as one batch."""
    return native.forward(batch_of(pieces), cache)


def batch_of(pieces: list[tuple[int, int, int]]) -> ForwardBatch:
    """(sequence, from, to) pieces; a sequence's number is its slot."""
    return ForwardBatch.build(
        np.concatenate([tokens_of(n, MAX_LEN)[start:end] for n, start, end in pieces]),
        np.array([end - start for _, start, end in pieces]),
        np.array([start for _, start, _ in pieces]),
        np.array([n for n, _, _ in pieces]),
        None,
        "cpu",
    )


@st.composite
def histories(draw: st.DrawFn) -> list[list[tuple[int, int, int]]]:
    """Batches that bring some sequences forward by pieces of all sizes."""
    done = [0] * SLOTS
    batches = []
    for _ in range(draw(st.integers(1, 8))):
        numbers = draw(st.lists(st.integers(0, SLOTS - 1), min_size=1, unique=True))
        batch = []
        for number in numbers:
            rows = min(draw(st.sampled_from([1, 2, 5, 9, 13, 40, 90])), MAX_LEN - done[number])
            if rows:
                batch.append((number, done[number], done[number] + rows))
                done[number] += rows
        if batch:
            batches.append(batch)
    return batches


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(batches=histories(), threads=st.sampled_from([1, 2, 3]))
def test_a_row_has_the_same_bits_in_every_batch_layout_and_number_of_threads(
    native: NativeTransformer, batches: list[list[tuple[int, int, int]]], threads: int
) -> None:
    torch.set_num_threads(1)
    alone = contiguous(native)
    whole = {number: forward(native, alone, [(number, 0, MAX_LEN)]) for number in range(SLOTS)}
    torch.set_num_threads(threads)
    for cache in (contiguous(native), paged(native)):
        for pieces in batches:
            logits = forward(native, cache, pieces)
            expected = torch.cat([whole[number][start:end] for number, start, end in pieces])
            assert torch.equal(logits, expected)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    batches=histories(),
    threads=st.sampled_from([1, 3]),
    vocabulary=st.integers(1, 131),
    seed=st.integers(0, 99),
)
def test_drafts_that_are_the_best_ids_hold(
    native: NativeTransformer,
    batches: list[list[tuple[int, int, int]]],
    threads: int,
    vocabulary: int,
    seed: int,
) -> None:
    torch.set_num_threads(threads)
    rng = np.random.default_rng(seed)
    cache, judging = contiguous(native), contiguous(native)
    for pieces in batches:
        batch = batch_of(pieces)
        ends = np.cumsum(batch.query_lens)
        lengths = batch.query_lens - 1
        # The model's own tokens, of which each sequence has some, then any others.
        kept = rng.integers(0, lengths + 1)
        for step in range(int(kept.max(initial=0))):
            best = native.forward(batch, cache)[:, :vocabulary].argmax(dim=1).numpy()
            rows = (ends - batch.query_lens + step)[kept > step]
            ids = batch.ids.copy()
            ids[rows + 1] = best[rows]
            batch = replace(batch, ids=ids)
        best = native.forward(batch, cache)[:, :vocabulary].argmax(dim=1).numpy()
        drafts = np.full((len(pieces), int(lengths.max())), -1, np.int64)
        used = np.arange(drafts.shape[1]) < lengths[:, None]
        drafts[used] = np.delete(batch.ids, ends - batch.query_lens)
        expected = accept(drafts, lengths, best)
        found = native.verify(batch, judging, vocabulary)
        assert (expected.accepted >= kept).all()
        assert np.array_equal(found.accepted, expected.accepted)
        assert np.array_equal(found.next_ids, expected.next_ids)


def test_drafts_are_judged_by_all_rows(native: NativeTransformer) -> None:
    batch = replace(batch_of([(0, 0, 5)]), wanted_rows=np.array([4]))
    with pytest.raises(ValueError, match="all rows"):
        native.verify(batch, contiguous(native), VOCABULARY)


def test_of_equal_scores_the_lowest_id_is_best(native: NativeTransformer) -> None:
    cache = contiguous(native)
    panels = native._panels["lm_head_proj"]
    before = panels.clone()
    try:
        panels.zero_()
        batch = batch_of([(0, 0, 5), (3, 0, 2)])
        assert not native.verify(batch, cache, VOCABULARY).next_ids.any()
        panels.fill_(torch.nan)
        assert not native.verify(batch_of([(0, 5, 9)]), cache, VOCABULARY).next_ids.any()
    finally:
        panels.copy_(before)


def test_only_the_rows_of_the_batch_are_written(native: NativeTransformer) -> None:
    cache = paged(native)
    cache.pool.fill_(7.0)
    forward(native, cache, [(2, 0, 30), (4, 0, 3)])
    written = (cache.pool != 7.0).any(dim=(0, 3, 4, 5))
    expected = torch.zeros_like(written)
    for slot, length in ((2, 30), (4, 3)):
        for place in cache.row_places(np.full(length, slot), np.arange(length)).tolist():
            expected[place // 8, place % 8] = True
    assert torch.equal(written, expected)


def test_keys_beyond_a_sequence_are_not_read(native: NativeTransformer) -> None:
    clean, dirty = paged(native), paged(native)
    dirty.pool.fill_(torch.nan)
    pieces = [(0, 0, 41), (3, 0, 17)]
    assert torch.equal(forward(native, dirty, pieces), forward(native, clean, pieces))


def test_positions_without_a_block_are_refused(native: NativeTransformer) -> None:
    cache = paged(native)
    cache.clear(3)
    with pytest.raises(ValueError, match="slot 3 has no block for position 0"):
        forward(native, cache, [(1, 0, 5), (3, 0, 5)])


def test_the_time_of_each_phase_is_told_on_request(native: NativeTransformer) -> None:
    seconds = native.seconds = np.zeros(len(PHASES))
    try:
        forward(native, contiguous(native), [(0, 0, 64)])
    finally:
        native.seconds = None
    assert dict(zip(PHASES, seconds > 0, strict=True)) == dict.fromkeys(PHASES, True)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fed=st.lists(st.integers(1, 40), min_size=1, max_size=SLOTS),
    lengths=st.lists(st.integers(1, 7), min_size=SLOTS, max_size=SLOTS),
    threads=st.sampled_from([1, 2, 3]),
)
def test_a_draft_in_one_call_is_that_of_one_step_after_another(
    native: NativeTransformer, fed: list[int], lengths: list[int], threads: int
) -> None:
    torch.set_num_threads(threads)
    wanted = np.array(lengths[: len(fed)])
    for one, other in (
        (contiguous(native), contiguous(native)),
        (paged(native), paged(native)),
    ):
        found = native.draft(prompts(fed), one, wanted, VOCABULARY, greedy(len(fed)))
        expected = np.full_like(found, -1)
        slots, ends, batch = np.arange(len(fed)), np.array(fed), prompts(fed)
        for step in range(int(wanted.max())):
            scores = native.forward(batch, other)[:, :VOCABULARY]
            ids = scores.max(dim=-1).indices.numpy()
            expected[slots, step] = ids
            going = wanted[slots] > step + 1
            slots = slots[going]
            if len(slots):
                ones = np.ones_like(slots)
                batch = ForwardBatch.build(ids[going], ones, ends[slots] + step, slots, None, "cpu")
        assert np.array_equal(found, expected)
        # What either has written is the same, too: both go on with the same logits.
        more = ForwardBatch.build(
            np.arange(len(fed)),
            np.ones_like(wanted),
            ends + wanted - 1,
            np.arange(len(fed)),
            None,
            "cpu",
        )
        assert torch.equal(native.forward(more, one), native.forward(more, other))


def prompts(fed: list[int]) -> ForwardBatch:
    """The first tokens of the sequences, with the logits of the last of each."""
    ids = np.concatenate([tokens_of(number, count) for number, count in enumerate(fed)])
    lasts = np.cumsum(fed) - 1
    return ForwardBatch.build(
        ids, np.array(fed), np.zeros(len(fed), np.int64), np.arange(len(fed)), lasts, "cpu"
    )


def greedy(count: int) -> SamplingRows:
    """Parameters of so many greedy sequences: the kernels draft for no others."""
    table = SamplingTable(SLOTS)
    return table.rows(np.arange(count), np.zeros(count, np.int64))


def test_only_greedy_sequences_are_drafted_in_one_call(native: NativeTransformer) -> None:
    table = SamplingTable(SLOTS)
    table.set(1, SamplingParams(temperature=0.5), 7)
    assert native.can_draft(greedy(2))
    assert not native.can_draft(table.rows(np.arange(2), np.zeros(2, np.int64)))


def test_a_draft_that_has_no_room_is_refused(native: NativeTransformer) -> None:
    cache = paged(native)
    cache.set_blocks(1, [0, 1])
    with pytest.raises(ValueError, match="slot 1 has no room for 17 tokens"):
        native.draft(prompts([10, 10]), cache, np.array([2, 8]), VOCABULARY, greedy(2))
    with pytest.raises(ValueError, match="slot 0 has no room for 201 tokens"):
        native.draft(prompts([199]), contiguous(native), np.array([3]), VOCABULARY, greedy(1))
