"""Accounting of KV blocks: who holds which, which are worth keeping, and how many are left.

A block is *used* while somebody holds it, *cached* while nobody does but its contents have a name
under which they may be found again, and *free* otherwise. Free and cached blocks are available;
the cached ones that were held least recently lose their contents first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

_DIGEST_BYTES = 16


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


def extend_digests(
    digests: list[bytes], token_ids: npt.NDArray[np.int32], block_size: int
) -> list[bytes]:
    """Names of all whole blocks of a text, continuing the list of those of its beginning.

    A name is a hash of the block's tokens and of the name before it, so that equal names mean equal
    tokens from the beginning of the text on. `token_ids`: int32 [N]. Extends `digests` in place.
    """
    previous = digests[-1] if digests else b""
    for block in range(len(digests), len(token_ids) // block_size):
        tokens = token_ids[block * block_size : (block + 1) * block_size]
        hashed = hashlib.blake2b(previous, digest_size=_DIGEST_BYTES)
        hashed.update(np.ascontiguousarray(tokens, np.int32).tobytes())
        previous = hashed.digest()
        digests.append(previous)
    return digests


class BlockPool:
    """The blocks 0 .. num_blocks-1, each free, used with a number of holders, or cached."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 0:
            raise ValueError(f"num_blocks must not be negative, got {num_blocks}")
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently held first
        self._name_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._with_draft: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated."""
        return len(self._free) + len(self._cached)

    def is_cached(self, block: int) -> bool:
        """Whether nobody holds the block and its contents can be found."""
        return block in self._cached

    def is_named(self, block: int) -> bool:
        """Whether the block's contents can be found."""
        return block in self._name_of

    def allocate(self, count: int) -> list[int]:
        """`count` distinct ids, held once each; free ones first, then cached ones, which lose their
        names. ValueError, and nothing taken, when fewer are available."""
        if not 0 <= count <= self.num_available:
            raise ValueError(f"cannot allocate {count} blocks, {self.num_available} are available")
        ids = [self._free.pop() for _ in range(min(count, len(self._free)))]
        while len(ids) < count:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
            ids.append(block)
        for block in ids:
            self._holders[block] = 1
        return ids

    def share(self, ids: Iterable[int]) -> None:
        """Hold blocks once more that are used or cached; ValueError for a free one."""
        ids = list(ids)
        for block in ids:
            if not self._holders[block] and block not in self._cached:
                raise ValueError(f"block {block} is free and has nothing to share")
        for block in ids:
            self._holders[block] += 1
            self._cached.pop(block, None)

    def release(self, ids: Iterable[int]) -> None:
        """Give up one hold of each block, in the order of the text.

        ValueError, and nothing released, if one is not in use or appears twice. What nobody holds
        any more is cached if it has a name and free otherwise. The end of a text loses its contents
        before its beginning does, without which it could not be found.
        """
        returned = list(ids)
        if len(set(returned)) != len(returned):
            raise ValueError(f"a block appears twice in {returned}")
        foreign = [b for b in returned if not 0 <= b < self.num_blocks or not self._holders[b]]
        if foreign:
            raise ValueError(f"blocks {foreign} are not in use")
        for block in reversed(returned):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._name_of:
                self._cached[block] = None
            else:
                self._free.append(block)

    def name(self, block: int, digest: bytes, with_draft: bool) -> None:
        """Say what a used block holds: the KV of the verifier and perhaps of the draft model.

        Of several blocks with the same contents the first keeps the name, unless only the new one
        holds the draft's part as well.
        """
        if not self._holders[block]:
            raise ValueError(f"block {block} is not in use and cannot be named")
        if block in self._name_of and self._name_of[block] != digest:
            raise ValueError(f"block {block} has another name")
        other = self._block_of.get(digest)
        if other is not None and other != block:
            if other in self._with_draft or not with_draft:
                return
            self._forget(other)
            if other in self._cached:
                del self._cached[other]
                self._free.append(other)
        self._block_of[digest] = block
        self._name_of[block] = digest
        if with_draft:
            self._with_draft.add(block)

    def find(self, digests: Sequence[bytes], with_draft: bool) -> list[int]:
        """The blocks of the longest known beginning of a text, with the draft's part if asked."""
        found: list[int] = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None or (with_draft and block not in self._with_draft):
                break
            found.append(block)
        return found

    def _forget(self, block: int) -> None:
        del self._block_of[self._name_of.pop(block)]
        self._with_draft.discard(block)

    def check(self) -> None:
        """Raise RuntimeError unless free, cached and used blocks together are exactly all."""
        free, cached = set(self._free), set(self._cached)
        used = {block for block, holders in enumerate(self._holders) if holders}
        named = {block: digest for digest, block in self._block_of.items()}
        if (
            len(free) != len(self._free)
            or free & cached
            or used & (free | cached)
            or free | cached | used != set(range(self.num_blocks))
            or named != self._name_of
            or not cached <= set(named) <= cached | used
            or not self._with_draft <= set(named)
        ):
            raise RuntimeError(
                f"block accounting is broken: {len(self._free)} free, {len(cached)} cached, "
                f"{len(used)} used, {self.num_blocks} in all"
            )
