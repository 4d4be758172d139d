"""A controller that draws every draft length anew, for each sequence of each cycle."""

from __future__ import annotations

import numpy as np

from pdv_mp.speculation.draft_length.controller import CycleTimes, Decisions, DecodeBatch
from pdv_mp.workers.worker import Worker


class RandomLengths:
    """Some cycles draft nothing, some the same for all, some a different length for each."""

    name = "random"
    acceptance = 0.5

    def __init__(self, max_length: int, rng: np.random.Generator) -> None:
        self.max_length = max_length
        self.decisions = Decisions()
        self._rng = rng

    @property
    def length(self) -> int:
        """What it holds to be right changes from request to request."""
        return int(self._rng.integers(0, 2))

    def choose(self, batch: DecodeBatch) -> np.ndarray:
        longest = self.max_length + 1
        kinds = [
            np.zeros_like(batch.limits),
            np.full_like(batch.limits, self._rng.integers(0, longest)),
            self._rng.integers(0, longest, len(batch.limits)),
        ]
        lengths = np.minimum(kinds[int(self._rng.integers(0, 3))], batch.limits)
        self.decisions.count(int(lengths.max()))
        return lengths

    def passes(self) -> bool:
        return bool(self._rng.random() < 0.1)

    def judged(self, slots: np.ndarray, lengths: np.ndarray, accepted: np.ndarray) -> None:
        assert (accepted <= lengths).all()

    def timed(self, times: CycleTimes) -> None:
        assert times.verify_ns > 0
        assert (times.steps > 0) == (times.drafting > 0) == (times.draft_ns > 0)
        assert times.rows >= times.sequences + times.drafting
        assert times.overhead_ns is None or times.overhead_ns >= 0

    def forget(self, slot: int) -> None:
        """It knows nothing."""


def use_random_lengths(worker: Worker, max_length: int, rng: np.random.Generator) -> None:
    """Let it decide instead of the worker's own controller, which allows as many tokens."""
    assert worker.controller.max_length == max_length
    worker.controller = worker.scheduler._drafts.controller = RandomLengths(max_length, rng)
