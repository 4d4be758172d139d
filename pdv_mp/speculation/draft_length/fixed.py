"""The same draft length in every cycle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pdv_mp.speculation.draft_length.acceptance_estimate import AcceptanceEstimate
from pdv_mp.speculation.draft_length.controller import Column, CycleTimes, Decisions, DecodeBatch


class FixedLength:
    """``length`` tokens, or what a sequence's limit leaves of them."""

    name = "fixed"

    def __init__(self, length: int, num_slots: int) -> None:
        self.max_length = length
        self.decisions = Decisions()
        self._estimate = AcceptanceEstimate(num_slots, max(1, length))

    @property
    def length(self) -> int:
        return self.max_length

    @property
    def acceptance(self) -> float:
        return self._estimate.mean

    def choose(self, batch: DecodeBatch) -> Column:
        self.decisions.count(self.max_length)
        lengths: Column = np.minimum(batch.limits, self.max_length)
        return lengths

    def passes(self) -> bool:
        return self.max_length == 0

    def judged(self, slots: Column, lengths: Column, accepted: Column) -> None:
        self._estimate.judged(slots, lengths, accepted)

    def timed(self, times: CycleTimes) -> None:
        """Costs play no part."""

    def rehearsed(self, times: Sequence[CycleTimes], read_ns: float = 0.0) -> None:
        """Costs play no part."""

    def forget(self, slot: int) -> None:
        self._estimate.forget(slot)
