"""The account of blocks against a model of it, under random sequences of calls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pdv_mp.memory.blocks import BlockPool, blocks_for, extend_digests


class Allocations(RuleBasedStateMachine):
    """Several holders take, share, name and return blocks; wrong returns change nothing.

    The model: who holds what, the name of each block, and the unheld named ones in the order in
    which they were given up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.holders: list[list[int]] = []
        self.names: dict[int, bytes] = {}
        self.with_draft: set[int] = set()
        self.cached: list[int] = []

    @initialize(num_blocks=st.integers(0, 30))
    def create(self, num_blocks: int) -> None:
        self.total = num_blocks
        self.pool = BlockPool(num_blocks)

    @property
    def used(self) -> set[int]:
        return {block for holder in self.holders for block in holder}

    @rule(count=st.integers(0, 35))
    def allocate(self, count: int) -> None:
        used = self.used
        num_free = self.total - len(used) - len(self.cached)
        if count > num_free + len(self.cached):
            with pytest.raises(ValueError, match="cannot allocate"):
                self.pool.allocate(count)
            return
        ids = self.pool.allocate(count)
        assert len(set(ids)) == len(ids) == count
        assert not used & set(ids)
        assert all(0 <= block < self.total for block in ids)
        evicted = self.cached[: max(0, count - num_free)]
        assert set(ids) & set(self.cached) == set(evicted), "least recently held first"
        for block in evicted:
            self.unname(block)
        self.cached = self.cached[len(evicted) :]
        self.holders.append(ids)

    def unname(self, block: int) -> None:
        del self.names[block]
        self.with_draft.discard(block)

    @rule(data=st.data())
    def release_part_or_all(self, data: st.DataObject) -> None:
        if not self.holders:
            return
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        kept = data.draw(st.integers(0, len(holder)))
        self.pool.release(holder[kept:])
        self.holders.append(holder[:kept])
        for block in reversed(holder[kept:]):
            if block not in self.used and block in self.names:
                self.cached.append(block)

    @rule(data=st.data())
    def release_wrongly(self, data: st.DataObject) -> None:
        held = sorted(self.used)
        foreign = data.draw(st.integers(-2, 40).filter(lambda block: block not in held))
        for wrong in ([*held, foreign], [foreign], held[:1] * 2):
            if wrong:
                with pytest.raises(ValueError, match=r"not in use|appears twice"):
                    self.pool.release(wrong)

    @precondition(lambda self: self.used)
    @rule(data=st.data(), digest=st.integers(0, 9), with_draft=st.booleans())
    def name(self, data: st.DataObject, digest: int, with_draft: bool) -> None:
        block = data.draw(st.sampled_from(sorted(self.used)))
        digest_bytes = bytes([digest])
        if self.names.get(block, digest_bytes) != digest_bytes:
            with pytest.raises(ValueError, match="has another name"):
                self.pool.name(block, digest_bytes, with_draft)
            return
        self.pool.name(block, digest_bytes, with_draft)
        other = next((b for b, name in self.names.items() if name == digest_bytes), None)
        if other is not None and other != block:
            if other in self.with_draft or not with_draft:
                return
            self.unname(other)
            if other in self.cached:
                self.cached.remove(other)
        self.names[block] = digest_bytes
        if with_draft:
            self.with_draft.add(block)

    @rule(digests=st.lists(st.integers(0, 9), max_size=4), with_draft=st.booleans())
    def find_and_share(self, digests: list[int], with_draft: bool) -> None:
        block_of = {name: block for block, name in self.names.items()}
        expected = []
        for digest in digests:
            block = block_of.get(bytes([digest]))
            if block is None or (with_draft and block not in self.with_draft):
                break
            expected.append(block)
        found = self.pool.find([bytes([digest]) for digest in digests], with_draft)
        assert found == expected
        if len(set(found)) == len(found):
            self.pool.share(found)
            self.cached = [block for block in self.cached if block not in found]
            self.holders.append(found)

    @rule(data=st.data())
    def share_a_free_block(self, data: st.DataObject) -> None:
        free = sorted(set(range(self.total)) - self.used - set(self.cached))
        if free:
            with pytest.raises(ValueError, match="nothing to share"):
                self.pool.share([data.draw(st.sampled_from(free))])

    @invariant()
    def accounts_agree(self) -> None:
        if hasattr(self, "pool"):
            assert self.pool.num_used == len(self.used)
            assert self.pool.num_cached == len(self.cached)
            assert self.pool.num_free + len(self.used) + len(self.cached) == self.total
            assert self.pool.num_available == self.total - len(self.used)
            assert all(self.pool.is_cached(block) for block in self.cached)
            assert all(self.pool.is_named(block) for block in self.names)
            self.pool.check()


TestAllocations = Allocations.TestCase
TestAllocations.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_check_notices_a_lost_block() -> None:
    pool = BlockPool(4)
    pool.allocate(2)
    pool._free.pop()
    with pytest.raises(RuntimeError, match="block accounting is broken"):
        pool.check()


def test_the_end_of_a_text_is_forgotten_before_its_beginning() -> None:
    pool = BlockPool(3)
    text = pool.allocate(3)
    for index, block in enumerate(text):
        pool.name(block, bytes([index]), with_draft=False)
    pool.release(text)
    assert pool.allocate(1) == [text[2]]
    assert pool.find([b"\0", b"\1", b"\2"], with_draft=False) == text[:2]


def test_names_depend_on_everything_before_them() -> None:
    text = np.arange(10, dtype=np.int32)
    names = extend_digests([], text, 4)
    assert len(names) == 2
    assert extend_digests(names[:1], text, 4) == names
    changed = text.copy()
    changed[0] = 7
    assert not set(extend_digests([], changed, 4)) & set(names)
    assert extend_digests([], text[4:], 4)[0] not in names
    assert extend_digests([], text[:7], 4) == names[:1]


def test_blocks_for_rounds_up() -> None:
    assert [blocks_for(n, 16) for n in (0, 1, 16, 17, 33)] == [0, 1, 1, 2, 3]


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        BlockPool(-1)
    with pytest.raises(ValueError, match="cannot allocate"):
        BlockPool(3).allocate(-1)
