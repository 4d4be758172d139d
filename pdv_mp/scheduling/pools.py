"""The one owner of slots and KV blocks of a replica, for both models."""

from __future__ import annotations

import heapq
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from pdv_mp.memory.blocks import BlockPool, blocks_for
from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.memory.paged_kv_cache import PagedKVCache


@dataclass(frozen=True, slots=True)
class Grant:
    """A slot, and how many tokens at its beginning have their KV already, in whole blocks."""

    slot: int
    cached: int


@dataclass(slots=True)
class _Holding:
    """What a slot holds: its blocks in the order of the text, and how many of them are named."""

    blocks: list[int] = field(default_factory=list)
    published: int = 0


class Pools:
    """Hands out slots with the KV blocks that they may use, and takes them back.

    A block is ``block_size`` tokens in the caches of all models at once: both models' KV of a
    sequence have the same length up to a cycle, so one account serves both.

    In paged caches a block is a place, and sequences with the same beginning share the blocks of
    it. In contiguous caches a slot's run is virtual memory, of which a block accounts for a part;
    what is kept for later is copied out of the run into a store, where a cached block is a place,
    and copied into the run of a sequence that begins alike. Pages that a released slot has touched
    stay with it until all caches together hold more than ``budget_bytes``; then those of idle slots
    are given back, and those of blocks in the store that have lost their contents.
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
        self._blocks = BlockPool(num_blocks)
        self._paged = [cache for cache in caches if isinstance(cache, PagedKVCache)]
        self._contiguous = [cache for cache in caches if isinstance(cache, ContiguousKVCache)]
        self._budget_bytes = budget_bytes
        self._num_slots = num_slots
        self._free_slots = list(range(num_slots))
        self._held: dict[int, _Holding] = {}
        self._stored: set[int] = set()  # blocks whose place in the store has been written

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self._blocks.num_blocks

    @property
    def blocks_in_use(self) -> int:
        """Blocks that some slot holds."""
        return self._blocks.num_used

    @property
    def blocks_cached(self) -> int:
        """Blocks that no slot holds and whose contents may be used again."""
        return self._blocks.num_cached

    @property
    def blocks_free(self) -> int:
        """Blocks that no slot holds and that hold nothing."""
        return self._blocks.num_free

    @property
    def slots_in_use(self) -> int:
        """Slots that are handed out."""
        return len(self._held)

    @property
    def max_tokens(self) -> int:
        """Most tokens that one sequence could hold if it were alone."""
        return self.num_blocks * self.block_size

    def known(self, digests: SequenceOf[bytes], with_draft: bool) -> int:
        """How many blocks at the beginning of a text would be found."""
        return len(self._blocks.find(digests, with_draft))

    def acquire(
        self,
        num_tokens: int,
        digests: SequenceOf[bytes] = (),
        with_draft: bool = False,
        spare: int = 0,
    ) -> Grant | None:
        """A slot with room for ``num_tokens``, or None while there is none.

        ``digests``: names of the text's whole blocks that may be taken over if they are known, in
        both models if ``with_draft``; they must leave at least one token to compute. ``spare``:
        blocks that must stay available. The lowest free slot is taken, so that the slots of a batch
        stay close together. The caller owns the slot until :meth:`release`.
        """
        wanted = blocks_for(num_tokens, self.block_size)
        if not self._free_slots:
            return None
        found = self._blocks.find(digests, with_draft)
        # Where contents are copied, the copy and what it is made from are both needed for a moment.
        room = self._blocks.num_available - spare
        if self._contiguous:
            found = found[: max(0, room - wanted)]
        idle = sum(self._blocks.is_cached(block) for block in found)
        fresh = wanted if self._contiguous else wanted - len(found)
        if fresh + idle > room:
            return None
        self._blocks.share(found)
        slot = heapq.heappop(self._free_slots)
        blocks = self._blocks.allocate(fresh)
        self._give_back_pages(slot)
        if self._contiguous:
            for cache in self._contiguous[: 2 if with_draft else 1]:
                cache.load(slot, found)
            self._blocks.release(found)
        else:
            blocks = found + blocks
            for paged in self._paged:
                paged.set_blocks(slot, blocks)
        self._held[slot] = _Holding(blocks, len(found))
        return Grant(slot, len(found) * self.block_size)

    def grow(self, slot: int, num_tokens: int) -> bool:
        """Give a slot room for ``num_tokens``; False, and nothing changed, if there is none."""
        blocks = self._held[slot].blocks
        missing = blocks_for(num_tokens, self.block_size) - len(blocks)
        if missing > self._blocks.num_available:
            return False
        if missing > 0:
            blocks += self._blocks.allocate(missing)
            for cache in self._paged:
                cache.set_blocks(slot, blocks)
        return True

    def room(self, slot: int) -> int:
        """Tokens for which a slot has room."""
        return len(self._held[slot].blocks) * self.block_size

    def publish(self, slot: int, digests: SequenceOf[bytes], with_draft: bool) -> None:
        """Let other sequences use the first ``len(digests)`` blocks of a slot, whose names these
        are. Their rows must be written and committed, in both models if ``with_draft``."""
        holding = self._held[slot]
        first, holding.published = holding.published, max(holding.published, len(digests))
        if first >= len(digests):
            return
        if self._contiguous:
            self._store(slot, digests, with_draft)
            return
        for index in range(first, len(digests)):
            self._blocks.name(holding.blocks[index], digests[index], with_draft)

    def release(self, slot: int, digests: SequenceOf[bytes] = (), with_draft: bool = False) -> None:
        """Take a slot and its blocks back, and keep what ``digests`` name as :meth:`publish` does.

        Raises KeyError for a slot that is not handed out.
        """
        if not self._contiguous:
            self.publish(slot, digests, with_draft)
        self._blocks.release(self._held.pop(slot).blocks)
        if self._contiguous:
            # The run still holds its rows, and its blocks are available to keep copies of them.
            self._store(slot, digests, with_draft)
        for cache in self._paged:
            cache.clear(slot)
        heapq.heappush(self._free_slots, slot)
        self._give_back_pages(slot)

    def _store(self, slot: int, digests: SequenceOf[bytes], with_draft: bool) -> None:
        """Copy what the store lacks of a slot's first blocks into it, as far as there is room."""
        places = [next(iter(self._blocks.find([digest], with_draft)), None) for digest in digests]
        self._blocks.share(place for place in places if place is not None)
        missing = [index for index, place in enumerate(places) if place is None]
        missing = missing[: self._blocks.num_available]
        fresh = self._blocks.allocate(len(missing))
        self._stored.update(fresh)
        for cache in self._contiguous[: 2 if with_draft else 1]:
            cache.save(slot, missing, fresh)
        for index, place in zip(missing, fresh, strict=True):
            self._blocks.name(place, digests[index], with_draft)
            places[index] = place
        self._blocks.release(place for place in places if place is not None)

    def check(self) -> None:
        """Raise RuntimeError unless every slot and every block is accounted for."""
        self._blocks.check()
        held = [block for holding in self._held.values() for block in holding.blocks]
        if len(set(held)) != self._blocks.num_used:
            raise RuntimeError(
                f"{self._blocks.num_used} blocks are used, but slots hold {len(set(held))}"
            )
        if self._contiguous and len(set(held)) != len(held):
            raise RuntimeError("a block of a contiguous run is held twice")
        if sorted([*self._free_slots, *self._held]) != list(range(self._num_slots)):
            raise RuntimeError("a slot is both free and in use, or lost")

    def _give_back_pages(self, first: int) -> None:
        """Discard pages that hold nothing until the budget holds: those of the slot ``first``, then
        of the free slots that will be taken last, then of the store."""
        for slot in (first, *sorted(self._free_slots, reverse=True)):
            if self._within_budget():
                return
            for cache in self._contiguous:
                cache.discard(slot)
        for block in [block for block in self._stored if not self._blocks.is_named(block)]:
            if self._within_budget():
                return
            self._stored.discard(block)
            for cache in self._contiguous:
                cache.discard_stored(block)

    def _within_budget(self) -> bool:
        return sum(cache.committed_bytes() for cache in self._contiguous) <= self._budget_bytes
