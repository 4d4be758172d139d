"""Drafts that are made only to learn whether drafting would pay again.

While nothing is drafted nothing is learnt of acceptance. So now and then one token is drafted, for
the few sequences whose draft cache lags least behind: what it lacks must be fed first. Explorations
may take :data:`SHARE` of the time, and come at the earliest :data:`INTERVAL` cycles after the last
draft.
"""

from __future__ import annotations

import numpy as np

from pdv_mp.speculation.draft_length.controller import Column

INTERVAL = 50
SHARE = 0.01
PAUSE = 10
"""Cycles until it is asked again whether an exploration can be afforded."""
MAX_SEQUENCES = 8
MAX_FED = 256
"""Tokens that an exploration may feed to the draft's cache besides."""


class Exploration:
    """Counts the cycles without drafts, says when it is time to look, and at whom."""

    def __init__(self) -> None:
        self._since = 0
        self._next = INTERVAL

    def reset(self) -> None:
        """Something was drafted."""
        self._since, self._next = 0, INTERVAL

    def passed(self) -> bool:
        """One more cycle without drafts, unless it may be time for one; whether it was one."""
        if self._since + 1 >= self._next:
            return False
        self._since += 1
        return True

    def is_due(self) -> bool:
        """One more cycle without drafts; whether it is time to ask what can be afforded."""
        self._since += 1
        if self._since < self._next:
            return False
        self._next = self._since + PAUSE
        return True

    def budget_ns(self, cycle_ns: float) -> float:
        """What an exploration may cost, after so many cycles without drafts of ``cycle_ns``."""
        return SHARE * self._since * cycle_ns

    @staticmethod
    def pick(limits: Column, gaps: Column, max_fed: float) -> Column:
        """The sequences to explore, indices into ``limits`` and ``gaps`` [B], whose gaps are at
        most ``max_fed`` tokens together; perhaps none."""
        candidates = np.flatnonzero(limits > 0)
        candidates = candidates[np.argsort(gaps[candidates], kind="stable")][:MAX_SEQUENCES]
        fed = np.cumsum(gaps[candidates])
        return candidates[fed <= min(max_fed, MAX_FED)]
