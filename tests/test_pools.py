"""Slots and blocks: handed out once, taken back once, never lost."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pdv_mp.pools import Pools

SLOTS, BLOCKS, BLOCK_SIZE = 5, 12, 4


class PoolsMachine(RuleBasedStateMachine):
    """Random acquisitions and releases against a plain model of the account."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = Pools(SLOTS, BLOCKS, BLOCK_SIZE, caches=[])
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
