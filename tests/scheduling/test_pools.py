"""Slots and blocks: handed out once, taken back once, never lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tiny_model import TinyPair

from pdv_mp.memory.blocks import blocks_for, extend_digests
from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.architecture import ModelConfig, RopeConfig
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.scheduling.pools import Pools

SLOTS, BLOCKS, BLOCK_SIZE = 5, 12, 4


class PoolsMachine(RuleBasedStateMachine):
    """Random acquisitions, growth and releases against a plain model of the account."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = Pools(SLOTS, BLOCKS, BLOCK_SIZE, caches=[], budget_bytes=0)
        self.held: dict[int, int] = {}

    @property
    def available(self) -> int:
        return BLOCKS - sum(self.held.values())

    @rule(tokens=st.integers(1, SLOTS * BLOCK_SIZE * 3), spare=st.integers(0, 3))
    def acquire(self, tokens: int, spare: int) -> None:
        wanted = -(-tokens // BLOCK_SIZE)
        fits = len(self.held) < SLOTS and wanted + spare <= self.available
        grant = self.pools.acquire(tokens, spare=spare)
        assert (grant is not None) == fits
        if grant is not None:
            assert grant.slot == min(set(range(SLOTS)) - set(self.held))
            assert grant.cached == 0
            self.held[grant.slot] = wanted

    @precondition(lambda self: self.held)
    @rule(data=st.data(), tokens=st.integers(1, SLOTS * BLOCK_SIZE * 3))
    def grow(self, data: st.DataObject, tokens: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        missing = max(0, -(-tokens // BLOCK_SIZE) - self.held[slot])
        grown = self.pools.grow(slot, tokens)
        assert grown == (missing <= self.available)
        self.held[slot] += missing if grown else 0
        assert self.pools.room(slot) == self.held[slot] * BLOCK_SIZE

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        self.pools.release(slot)
        del self.held[slot]
        with pytest.raises(KeyError):
            self.pools.release(slot)

    @invariant()
    def accounts_agree(self) -> None:
        self.pools.check()
        assert self.pools.blocks_in_use == sum(self.held.values())
        assert self.pools.blocks_free == self.available
        assert self.pools.slots_in_use == len(self.held)
        assert self.pools.num_blocks == BLOCKS


TestPools = PoolsMachine.TestCase


def fill(cache: ContiguousKVCache, slot: int, tokens: int) -> None:
    """Write a sequence of that many tokens into every layer."""
    batch = ForwardBatch.build(
        np.zeros(tokens, np.int64),
        np.array([tokens]),
        np.array([0]),
        np.array([slot]),
        logit_rows=None,
        device=torch.device("cpu"),
    )
    plan = cache.plan(batch)
    for layer in range(2):
        cache.write(layer, torch.ones(tokens, 2 * 2 * 8), plan)


def acquire(pools: Pools, tokens: int) -> int:
    grant = pools.acquire(tokens)
    assert grant is not None
    return grant.slot


def test_pages_of_past_sequences_are_given_back(tiny_pair: TinyPair) -> None:
    config = ModelConfig.from_folder(tiny_pair.verifier)
    tokens = 512
    budget = 2 * tokens * config.kv_bytes_per_token("float32")
    cache = ContiguousKVCache(config, 4, tokens, torch.float32, BLOCK_SIZE)
    pools = Pools(4, 2 * tokens // BLOCK_SIZE, BLOCK_SIZE, [cache], budget)
    try:
        # Every slot is used to its end once, and then by short sequences only.
        for first in (0, 1, 2):
            short = [acquire(pools, 1) for _ in range(first)]
            assert short == list(range(first))
            slot = acquire(pools, tokens)
            assert slot == first
            fill(cache, slot, tokens)
            for taken in (slot, *range(first)):
                pools.release(taken)
            assert cache.committed_bytes() <= budget
        held = [acquire(pools, 100) for _ in range(4)]
        for slot in held:
            fill(cache, slot, 100)
        pools.release(held[0])
        assert cache.committed_bytes() <= budget
    finally:
        cache.close()


class SharingMachine(RuleBasedStateMachine):
    """Texts of few letters come and go, in slots that share what they can.

    A row's contents are written as a function of the text up to it, so that whatever a slot is said
    to have can be compared with what it must be.
    """

    layout = "contiguous"

    def __init__(self) -> None:
        super().__init__()
        config = make_config()
        self.caches: list[ContiguousKVCache | PagedKVCache] = []
        for _ in range(2):
            if self.layout == "contiguous":
                cache = ContiguousKVCache(config, SLOTS, MAX_LEN, torch.float32, BLOCK_SIZE, BLOCKS)
            else:
                cache = PagedKVCache(
                    config, BLOCKS, BLOCK_SIZE, SLOTS, MAX_LEN, torch.float32, torch.device("cpu")
                )
            self.caches.append(cache)
        self.pools = Pools(SLOTS, BLOCKS, BLOCK_SIZE, self.caches, budget_bytes=0)
        self.texts: dict[int, tuple[list[int], bool]] = {}

    def teardown(self) -> None:
        for cache in self.caches:
            if isinstance(cache, ContiguousKVCache):
                cache.close()

    @rule(text=st.lists(st.integers(0, 1), min_size=1, max_size=24), with_draft=st.booleans())
    def arrive(self, text: list[int], with_draft: bool) -> None:
        digests = extend_digests([], np.array(text, np.int32), BLOCK_SIZE)
        readable = digests[: (len(text) - 1) // BLOCK_SIZE]
        grant = self.pools.acquire(len(text), readable, with_draft)
        if grant is None:
            assert len(self.texts) == SLOTS or blocks_for(len(text), BLOCK_SIZE) > (
                self.pools.blocks_free + self.pools.blocks_cached - len(readable)
            )
            return
        assert grant.cached <= len(readable) * BLOCK_SIZE < len(text)
        self.texts[grant.slot] = (text, with_draft)
        for number, cache in enumerate(self.caches[: 2 if with_draft else 1]):
            self.compare(number, cache, grant.slot, text[: grant.cached])
            write(number, cache, grant.slot, text, grant.cached)
            self.compare(number, cache, grant.slot, text)

    def compare(self, number: int, cache: KVCache, slot: int, text: list[int]) -> None:
        if text:
            found = read(cache, slot, len(text))
            assert torch.equal(found, contents(number, text))

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.texts)))
        text, with_draft = self.texts[slot]
        digests = extend_digests([], np.array(text, np.int32), BLOCK_SIZE)
        self.pools.publish(slot, digests[: data.draw(st.integers(0, len(digests)))], with_draft)

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), keep=st.booleans())
    def leave(self, data: st.DataObject, keep: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.texts)))
        text, with_draft = self.texts.pop(slot)
        digests = extend_digests([], np.array(text, np.int32), BLOCK_SIZE)
        self.pools.release(slot, digests if keep else (), with_draft)

    @invariant()
    def nothing_is_lost_or_changed(self) -> None:
        self.pools.check()
        assert self.pools.slots_in_use == len(self.texts)
        for slot, (text, with_draft) in self.texts.items():
            for number, cache in enumerate(self.caches[: 2 if with_draft else 1]):
                self.compare(number, cache, slot, text)


class PagedSharingMachine(SharingMachine):
    layout = "paged"


TestSharing = SharingMachine.TestCase
TestPagedSharing = PagedSharingMachine.TestCase
TestSharing.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestPagedSharing.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)

HEADS, HEAD_DIM, LAYERS = 2, 4, 2
MAX_LEN = 24


def make_config() -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=8,
        hidden_size=16,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=HEADS,
        head_dim=HEAD_DIM,
        intermediate_size=16,
        rms_norm_eps=1e-6,
        rope=RopeConfig(10000.0),
        max_position_embeddings=MAX_LEN,
    )


def contents(number: int, text: list[int]) -> torch.Tensor:
    """What model ``number`` has of a text: float32 [layer, key or value, head, row, head_dim]."""
    value = 1
    rows = []
    for token in text:
        value = (3 * value + token + 1) % 9973
        rows.append(value)
    column = torch.tensor(rows, dtype=torch.float32)[None, None, None, :, None] + number / 2
    layer = torch.arange(LAYERS)[:, None, None, None, None] / 4
    part = torch.arange(2)[None, :, None, None, None] / 8
    head = torch.arange(HEADS)[None, None, :, None, None] / 16
    return (column + layer + part + head).expand(LAYERS, 2, HEADS, len(text), HEAD_DIM)


def write(number: int, cache: KVCache, slot: int, text: list[int], start: int) -> None:
    count = len(text) - start
    batch = ForwardBatch.build(
        np.zeros(count, np.int64),
        np.array([count]),
        np.array([start]),
        np.array([slot]),
        None,
        "cpu",
    )
    plan = cache.plan(batch)
    rows = contents(number, text)[:, :, :, start:]
    for layer in range(LAYERS):
        cache.write(layer, rows[layer].permute(2, 0, 1, 3).reshape(count, -1), plan)


def read(cache: KVCache, slot: int, count: int) -> torch.Tensor:
    """The first rows of a slot, as attention would see them."""
    batch = ForwardBatch.build(
        np.zeros(1, np.int64), np.array([1]), np.array([count - 1]), np.array([slot]), None, "cpu"
    )
    (group,) = cache.plan(batch).groups
    layers = [torch.stack(cache._keys_values(layer, group)) for layer in range(LAYERS)]
    return torch.stack(layers)[:, :, 0]
