"""How requests end: whether others follow them while the rest of their batch goes on, and whether
their limits had said when.

Where nobody follows, a batch that drafts ends raggedly: requests that would end together without
drafts end one after another, as their drafts were kept, and the last ones have the machine for
themselves. What that costs is no part of the law of goodput, which holds for batches that stay as
large as they are. Where requests end long before their limits nobody knows who will be the last.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from pdv_mp.speculation.draft_length.controller import Column

PATIENCE = 16
"""Cycles within which somebody has to follow."""
WINDOW = 32.0
"""Requests that count."""
FIRST = 8.0
"""Before anything is known so many were followed, and ended at their limits."""


class Turnover:
    """Watches the batches of at most ``num_slots`` requests. Of groups that take turns nothing is
    learnt: each seems to be a batch of its own."""

    def __init__(self, num_slots: int) -> None:
        self._here = np.zeros(num_slots, np.bool_)
        self._remaining = np.zeros(num_slots, np.int64)
        self._count = 0
        self._cycle = 0
        self._vacant: deque[int] = deque()
        """The cycles since which places are empty."""
        self._follow, self._reach = _Share(), _Share()

    @property
    def followed(self) -> float:
        """The share of those that ended before the rest of their batch that others followed."""
        return self._follow.value

    @property
    def at_limit(self) -> float:
        """The share of those that left a batch which may have had all tokens that they could get;
        the others were paused, or ended by themselves."""
        return self._reach.value

    def replaced(self, slot: int) -> None:
        """The slot has a new owner."""
        self._here[slot] = False

    def seen(self, slots: Column, remaining: Column, cycles: int, tokens: int) -> None:
        """The batch, ``slots`` [B], whose requests may still get ``remaining`` [B] tokens, so many
        cycles after the last one, in which each may have got as many as ``tokens``."""
        self._cycle += cycles
        came = len(slots) - int(self._here[slots].sum())
        left = self._count + came - len(slots)
        self._here[slots] = False
        gone = self._remaining[self._here]
        self._here[:] = False
        self._here[slots] = True
        self._remaining[slots] = remaining
        self._count = len(slots)
        if came == len(slots):
            # Nobody is still there for whom they could matter.
            self._follow.add(0, len(self._vacant))
            self._vacant.clear()
            return
        reached = int((gone <= tokens).sum())
        self._reach.add(reached, len(gone) - reached)
        followed = 0
        self._vacant.extend([self._cycle] * left)
        while self._vacant and followed < came:
            self._vacant.popleft()
            followed += 1
        missed = 0
        while self._vacant and self._vacant[0] < self._cycle - PATIENCE:
            self._vacant.popleft()
            missed += 1
        self._follow.add(followed, missed)


class _Share:
    """Of the last :data:`WINDOW`, more or less, how many did."""

    def __init__(self) -> None:
        self._did, self._others = FIRST, 0.0

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self._did / (self._did + self._others)

    def add(self, did: int, others: int) -> None:
        """So many more did, and did not."""
        if did or others:
            forgotten = (1 - 1 / WINDOW) ** (did + others)
            self._did = self._did * forgotten + did
            self._others = self._others * forgotten + others
