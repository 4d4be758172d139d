"""A draft length that goes up and down by one: the rule of the engine that pd and pdv come from.

That engine never called its rule, so nothing was ever measured of it; it is here for comparison.
After every ten judged proposals, with averages over the last hundred:

- shorter by one if more than 10 sequences wait for verification, or the 95th percentile of a
  cycle's time is over 50 ms, or less than 35 % of the drafts were kept;
- longer by one if at most 1 waits, that percentile is below 45 ms, and more than 65 % were kept.

The length starts at 4 and stays between 2 and 8. It is never 0, so speculation is never off, and
the limits in milliseconds are those of no device in particular.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from pdv_mp.speculation.draft_length.controller import Column, CycleTimes, Decisions, DecodeBatch

MIN_LENGTH, FIRST_LENGTH, MAX_LENGTH = 2, 4, 8
UPDATE_INTERVAL = 10
"""Judged proposals between two decisions."""
WINDOW = 100
"""Proposals and cycles that averages are taken over."""
LONGER_ABOVE, SHORTER_BELOW = 0.65, 0.35
"""Shares of the drafts that were kept."""
EXPECTED = 0.6
"""The share that counts before anything was judged."""
MAX_WAITING, FEW_WAITING = 10, 1
TARGET_P95_NS = 50_000_000
HEADROOM = 0.9


class Feedback:
    """``max_length`` bounds the rule's own 8, and, if it is smaller, its own 2."""

    name = "feedback"

    def __init__(self, max_length: int) -> None:
        self.max_length = min(MAX_LENGTH, max_length)
        self.decisions = Decisions()
        self._min_length = min(MIN_LENGTH, self.max_length)
        self._length = min(FIRST_LENGTH, self.max_length)
        self._kept: deque[float] = deque(maxlen=WINDOW)
        self._cycle_ns: deque[int] = deque(maxlen=WINDOW)
        self._judged = 0

    @property
    def length(self) -> int:
        return self._length

    @property
    def acceptance(self) -> float:
        return float(np.mean(self._kept)) if self._kept else EXPECTED

    def choose(self, batch: DecodeBatch) -> Column:
        if self._judged >= UPDATE_INTERVAL:
            self._judged = 0
            self._update(batch.waiting)
        self.decisions.count(self._length)
        lengths: Column = np.minimum(batch.limits, self._length)
        return lengths

    def _update(self, waiting: int) -> None:
        p95 = float(np.percentile(self._cycle_ns, 95)) if self._cycle_ns else 0.0
        kept = self.acceptance
        length = self._length
        if waiting > MAX_WAITING or p95 > TARGET_P95_NS or kept < SHORTER_BELOW:
            length = max(self._min_length, length - 1)
        elif waiting <= FEW_WAITING and p95 < HEADROOM * TARGET_P95_NS and kept > LONGER_ABOVE:
            length = min(self.max_length, length + 1)
        self.decisions.switches += length != self._length
        self._length = length

    def passes(self) -> bool:
        return False

    def judged(self, slots: Column, lengths: Column, accepted: Column) -> None:
        drafted = lengths > 0
        self._kept.extend((accepted[drafted] / lengths[drafted]).tolist())
        self._judged += int(drafted.sum())

    def timed(self, times: CycleTimes) -> None:
        self._cycle_ns.append(times.draft_ns + times.verify_ns)

    def rehearsed(self, times: Sequence[CycleTimes], read_ns: float = 0.0) -> None:
        """The rule knows what was served only."""

    def forget(self, slot: int) -> None:
        """The rule knows no sequences."""
