"""Accounting of KV blocks: who holds which, and how many are left."""

from __future__ import annotations

from collections.abc import Iterable


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


class BlockAllocator:
    """Hands out the block ids 0 .. num_blocks-1, most recently freed first."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 0:
            raise ValueError(f"num_blocks must not be negative, got {num_blocks}")
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return len(self._used)

    def can_allocate(self, count: int) -> bool:
        return 0 <= count <= len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` distinct ids; ValueError, and nothing taken, when fewer are free."""
        if not self.can_allocate(count):
            raise ValueError(f"cannot allocate {count} blocks, {len(self._free)} are free")
        start = len(self._free) - count
        ids = self._free[start:][::-1]
        del self._free[start:]
        self._used.update(ids)
        return ids

    def free(self, ids: Iterable[int]) -> None:
        """Take ids back; ValueError, and nothing freed, if one is not in use or appears twice."""
        returned = list(ids)
        if len(set(returned)) != len(returned):
            raise ValueError(f"a block appears twice in {returned}")
        foreign = [block for block in returned if block not in self._used]
        if foreign:
            raise ValueError(f"blocks {foreign} are not in use")
        self._used.difference_update(returned)
        self._free.extend(reversed(returned))

    def check(self) -> None:
        """Raise RuntimeError unless free and used blocks together are exactly all blocks."""
        free = set(self._free)
        if (
            len(free) != len(self._free)
            or free & self._used
            or free | self._used != set(range(self.num_blocks))
        ):
            raise RuntimeError(
                f"block accounting is broken: {len(self._free)} free, {len(self._used)} used, "
                f"{self.num_blocks} in all"
            )
