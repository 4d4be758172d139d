"""The block allocator against a model of it, under random sequences of calls."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pdv_mp.memory.blocks import BlockAllocator, blocks_for


class Allocations(RuleBasedStateMachine):
    """Several holders take and return blocks; wrong returns are refused and change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: list[list[int]] = []

    @initialize(num_blocks=st.integers(0, 30))
    def create(self, num_blocks: int) -> None:
        self.total = num_blocks
        self.allocator = BlockAllocator(num_blocks)

    @rule(count=st.integers(0, 35))
    def allocate(self, count: int) -> None:
        held = {block for holder in self.holders for block in holder}
        if count > self.total - len(held):
            assert not self.allocator.can_allocate(count)
            with pytest.raises(ValueError, match="cannot allocate"):
                self.allocator.allocate(count)
            return
        assert self.allocator.can_allocate(count)
        ids = self.allocator.allocate(count)
        assert len(set(ids)) == len(ids) == count
        assert not held & set(ids)
        assert all(0 <= block < self.total for block in ids)
        self.holders.append(ids)

    @rule(data=st.data())
    def free_part_or_all(self, data: st.DataObject) -> None:
        if not self.holders:
            return
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        kept = data.draw(st.integers(0, len(holder)))
        self.allocator.free(holder[kept:])
        self.holders.append(holder[:kept])

    @rule(data=st.data())
    def free_wrongly(self, data: st.DataObject) -> None:
        held = [block for holder in self.holders for block in holder]
        foreign = data.draw(st.integers(-2, 40).filter(lambda block: block not in held))
        for wrong in ([*held, foreign], [foreign], held[:1] * 2):
            if wrong:
                with pytest.raises(ValueError, match=r"not in use|appears twice"):
                    self.allocator.free(wrong)

    @invariant()
    def accounts_agree(self) -> None:
        held = sum(len(holder) for holder in self.holders)
        if hasattr(self, "allocator"):
            assert self.allocator.num_used == held
            assert self.allocator.num_free == self.total - held
            self.allocator.check()


TestAllocations = Allocations.TestCase
TestAllocations.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_check_notices_a_lost_block() -> None:
    allocator = BlockAllocator(4)
    allocator.allocate(2)
    allocator._used.pop()
    with pytest.raises(RuntimeError, match="block accounting is broken"):
        allocator.check()


def test_blocks_for_rounds_up() -> None:
    assert [blocks_for(n, 16) for n in (0, 1, 16, 17, 33)] == [0, 1, 1, 2, 3]


def test_a_negative_number_of_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        BlockAllocator(-1)
    assert not BlockAllocator(3).can_allocate(-1)
