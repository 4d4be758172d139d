"""The one owner of slots and KV blocks of a replica, for both models."""

from __future__ import annotations

import heapq
from collections.abc import Sequence as SequenceOf

from pdv_mp.memory.blocks import BlockAllocator, blocks_for
from pdv_mp.memory.kv_cache import ContiguousKVCache, KVCache, PagedKVCache


class Pools:
    """Hands out slots with the KV blocks that they may use, and takes them back.

    A block is ``block_size`` tokens in the caches of all models at once: both models' KV of a
    sequence have the same length up to a cycle, so one account serves both. In contiguous caches a
    slot's run is virtual memory, of which the account bounds what sequences in use may fill. Pages
    that a released slot has touched stay with it until all caches together hold more than
    ``budget_bytes``; then those of idle slots are given back.
    """

    def __init__(
        self,
        num_slots: int,
        num_blocks: int,
        block_size: int,
        caches: SequenceOf[KVCache],
        budget_bytes: int,
    ) -> None:
        self.block_size = block_size
        self._allocator = BlockAllocator(num_blocks)
        self._paged = [cache for cache in caches if isinstance(cache, PagedKVCache)]
        self._contiguous = [cache for cache in caches if isinstance(cache, ContiguousKVCache)]
        self._budget_bytes = budget_bytes
        self._num_slots = num_slots
        self._free_slots = list(range(num_slots))
        self._blocks: dict[int, list[int]] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self._allocator.num_free + self._allocator.num_used

    @property
    def blocks_in_use(self) -> int:
        """Blocks that some slot holds."""
        return self._allocator.num_used

    @property
    def slots_in_use(self) -> int:
        """Slots that are handed out."""
        return len(self._blocks)

    @property
    def max_tokens(self) -> int:
        """Most tokens that one sequence could hold if it were alone."""
        return self.num_blocks * self.block_size

    def acquire(self, num_tokens: int) -> int | None:
        """A slot with room for ``num_tokens``, or None while there is none.

        The lowest free slot is taken, so that the slots of a batch stay close together. The caller
        owns the slot until :meth:`release`.
        """
        wanted = blocks_for(num_tokens, self.block_size)
        if not self._free_slots or not self._allocator.can_allocate(wanted):
            return None
        slot = heapq.heappop(self._free_slots)
        blocks = self._allocator.allocate(wanted)
        self._blocks[slot] = blocks
        for cache in self._paged:
            cache.set_blocks(slot, blocks)
        self._give_back_pages(slot)
        return slot

    def release(self, slot: int) -> None:
        """Take a slot and its blocks back. Raises KeyError for a slot that is not handed out."""
        self._allocator.free(self._blocks.pop(slot))
        for cache in self._paged:
            cache.clear(slot)
        heapq.heappush(self._free_slots, slot)
        self._give_back_pages(slot)

    def check(self) -> None:
        """Raise RuntimeError unless every slot and every block is accounted for exactly once."""
        self._allocator.check()
        held = [block for blocks in self._blocks.values() for block in blocks]
        if len(set(held)) != len(held) or len(held) != self._allocator.num_used:
            raise RuntimeError("a KV block is held twice or not at all")
        if sorted([*self._free_slots, *self._blocks]) != list(range(self._num_slots)):
            raise RuntimeError("a slot is both free and in use, or lost")

    def _give_back_pages(self, first: int) -> None:
        """Discard the pages of idle slots until the budget holds: those of ``first``, which has no
        data now, and then of the free slots that will be taken last."""
        for slot in (first, *sorted(self._free_slots, reverse=True)):
            if sum(cache.committed_bytes() for cache in self._contiguous) <= self._budget_bytes:
                return
            for cache in self._contiguous:
                cache.discard(slot)
