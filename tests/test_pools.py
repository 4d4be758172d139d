"""Slots and blocks: handed out once, taken back once, never lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tiny_model import TinyPair

from pdv_mp.memory.kv_cache import ContiguousKVCache
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.pools import Pools

SLOTS, BLOCKS, BLOCK_SIZE = 5, 12, 4


class PoolsMachine(RuleBasedStateMachine):
    """Random acquisitions and releases against a plain model of the account."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = Pools(SLOTS, BLOCKS, BLOCK_SIZE, caches=[], budget_bytes=0)
        self.held: dict[int, int] = {}

    @rule(tokens=st.integers(1, SLOTS * BLOCK_SIZE * 3))
    def acquire(self, tokens: int) -> None:
        wanted = -(-tokens // BLOCK_SIZE)
        fits = len(self.held) < SLOTS and sum(self.held.values()) + wanted <= BLOCKS
        slot = self.pools.acquire(tokens)
        assert (slot is not None) == fits
        if slot is not None:
            assert slot == min(set(range(SLOTS)) - set(self.held))
            self.held[slot] = wanted

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


def test_pages_of_past_sequences_are_given_back(tiny_pair: TinyPair) -> None:
    config = ModelConfig.from_folder(tiny_pair.verifier)
    tokens = 512
    budget = 2 * tokens * config.kv_bytes_per_token("float32")
    cache = ContiguousKVCache(config, 4, tokens, torch.float32, BLOCK_SIZE)
    pools = Pools(4, 2 * tokens // BLOCK_SIZE, BLOCK_SIZE, [cache], budget)
    try:
        # Every slot is used to its end once, and then by short sequences only.
        for first in (0, 1, 2):
            short = [pools.acquire(1) for _ in range(first)]
            assert short == list(range(first))
            slot = pools.acquire(tokens)
            assert slot == first
            fill(cache, slot, tokens)
            for taken in (slot, *range(first)):
                pools.release(taken)
            assert cache.committed_bytes() <= budget
        held = [pools.acquire(100) for _ in range(4)]
        for slot in held:
            fill(cache, slot, 100)
        pools.release(held[0])
        assert cache.committed_bytes() <= budget
    finally:
        cache.close()
