"""A running estimate of how probable it is that a draft token is kept.

Of a proposal whose first m of k drafts were kept, m trials succeeded and, if m < k, one failed; the
drafts after that were not tried. A sequence's probability is the mean of a Beta posterior: its own
trials, the older ones forgotten, on top of a prior that is worth :data:`PRIOR` trials at the
population's rate. So a request of a few tokens is judged by its fellows and a long one by itself.
The population starts at :data:`FIRST_MEAN` and counts its last :data:`POPULATION_WINDOW` trials,
until a cumulative sum test (E. S. Page, Biometrika 41, 1954) finds that its rate has changed: then
it starts again from the trials since the change. So a change of the texts is followed in a few
cycles, and without one the estimate is steady.

The j-th draft of a proposal may be kept more or less often than the first, whoever it is of: a
factor for each position says so.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pdv_mp.speculation.draft_length.controller import Column

FIRST_MEAN = 0.6
FIRST_WEIGHT = 8.0
"""Trials that :data:`FIRST_MEAN` is worth."""
PRIOR = 12.0
WINDOW = 48.0
"""Trials of a sequence that count."""
POPULATION_WINDOW = 1000.0
STEP = 0.25
"""By how much a population's rate may change at once."""
ALARM = 6.0
"""Logarithm of the likelihood ratio at which it counts as changed."""
KEPT_OF_A_CHANGED = 0.3
"""Weight of what sequences had shown before their population changed."""
POSITION_WINDOW = 3000.0
POSITION_PRIOR = 100.0
MAX_FACTOR = 1.5
LUCK = 1.5
LOWEST, HIGHEST = 0.005, 0.995
MOST_UNREAD = 8
"""Verdicts that are kept until somebody asks. Several in a row take little more time than one,
whose code and data each step of a model drives out of the caches."""

Floats = npt.NDArray[np.float64]


class AcceptanceEstimate:
    """``num_slots`` sequences at most, and drafts of ``max_length`` tokens, of ``num_kinds`` kinds
    that may be worth more or less: each kind has a population of its own."""

    def __init__(self, num_slots: int, max_length: int, num_kinds: int = 1) -> None:
        self.num_kinds = num_kinds
        self._kind = np.zeros(num_slots, np.int64)
        self._kept = np.zeros((num_slots, num_kinds))
        self._lost = np.zeros((num_slots, num_kinds))
        self._populations = [_Population() for _ in range(num_kinds)]
        self._position_kept = np.zeros(max_length)
        self._position_expected = np.zeros(max_length)
        self._unread: list[tuple[Column, Column, Column]] = []

    @property
    def mean(self) -> float:
        """The rate of all drafts together, but for the last verdicts, which are not read yet."""
        kept = sum(population.counts[0] for population in self._populations)
        lost = sum(population.counts[1] for population in self._populations)
        return _mean((kept, lost), FIRST_MEAN, FIRST_WEIGHT)

    def forget(self, slot: int) -> None:
        """The slot has a new owner, of whom nothing is known."""
        self._read()
        self._kept[slot], self._lost[slot] = 0.0, 0.0

    def drafts(self, slots: Column, kinds: Column) -> None:
        """The next drafts of these sequences are of these kinds."""
        self._read()
        self._kind[slots] = kinds

    def _own(self, slots: Column, if_lucky: bool = False) -> Floats:
        """The rate of each sequence's next draft, [B]."""
        kinds = self._kind[slots]
        means = np.array(
            [each.mean_if_lucky if if_lucky else each.mean for each in self._populations]
        )
        kept, lost = self._kept[slots, kinds], self._lost[slots, kinds]
        own: Floats = (PRIOR * means[kinds] + kept) / (PRIOR + kept + lost)
        return own

    def survival(self, slots: Column, length: int, if_lucky: bool = False) -> Floats:
        """The probability that the first j drafts are all kept, j = 1 .. ``length``: [B, length].
        It never rises with j. ``if_lucky``: the population's rate is somewhat higher than it
        seems."""
        self._read()
        own = self._own(slots, if_lucky)
        each = np.clip(own[:, None] * self._factors()[:length], LOWEST, HIGHEST)
        return np.cumprod(each, axis=1).astype(np.float64)

    def judged(self, slots: Column, lengths: Column, accepted: Column) -> None:
        """Of ``lengths`` [B] drafts the first ``accepted`` [B] were kept; a length may be 0. The
        columns are kept for a while: nobody may change them."""
        if not lengths.any():
            return
        self._unread.append((slots, lengths, accepted))
        if len(self._unread) >= MOST_UNREAD:
            self._read()

    def _read(self) -> None:
        """Learn from the verdicts so far."""
        unread, self._unread = self._unread, []
        for verdict in unread:
            self._learn(*verdict)

    def _learn(self, slots: Column, lengths: Column, accepted: Column) -> None:
        drafted = lengths > 0
        if not drafted.all():
            slots, lengths, accepted = slots[drafted], lengths[drafted], accepted[drafted]
        self._judge_positions(slots, lengths, accepted)
        lost, kinds = accepted < lengths, self._kind[slots]
        forgotten = (1 - 1 / WINDOW) ** (accepted + lost)
        self._kept[slots, kinds] = self._kept[slots, kinds] * forgotten + accepted
        self._lost[slots, kinds] = self._lost[slots, kinds] * forgotten + lost
        kept_of = np.bincount(kinds, accepted, self.num_kinds).tolist()
        lost_of = np.bincount(kinds, lost, self.num_kinds).tolist()
        for kind, (kept, failed) in enumerate(zip(kept_of, lost_of, strict=True)):
            if kept + failed and self._populations[kind].judged(kept, failed):
                self._kept[:, kind] *= KEPT_OF_A_CHANGED
                self._lost[:, kind] *= KEPT_OF_A_CHANGED

    def _factors(self) -> Floats:
        kept, expected = self._position_kept, self._position_expected
        found = (POSITION_PRIOR + kept) / (POSITION_PRIOR + expected)
        # Sequences differ from what was expected of them together; that is not for positions.
        found *= (POSITION_PRIOR + expected.sum()) / (POSITION_PRIOR + kept.sum())
        factors: Floats = np.clip(found, 1 / MAX_FACTOR, MAX_FACTOR)
        return factors

    def _judge_positions(self, slots: Column, lengths: Column, accepted: Column) -> None:
        own = self._own(slots)
        width = int(lengths.max())
        place = np.arange(width)
        tried = place < np.minimum(accepted + 1, lengths)[:, None]
        expected = own @ tried
        found = (place < accepted[:, None]).sum(axis=0)
        forgotten = (1 - 1 / POSITION_WINDOW) ** tried.sum(axis=0)
        self._position_expected[:width] = self._position_expected[:width] * forgotten + expected
        self._position_kept[:width] = self._position_kept[:width] * forgotten + found


class _Population:
    """The trials of all sequences: ``counts`` of those that succeeded and failed."""

    def __init__(self) -> None:
        self.counts = (0.0, 0.0)
        self._changes = (_Change(-STEP), _Change(STEP))

    @property
    def mean(self) -> float:
        """The rate."""
        return _mean(self.counts, FIRST_MEAN, FIRST_WEIGHT)

    @property
    def mean_if_lucky(self) -> float:
        """As far above :attr:`mean` as it may well be: :data:`LUCK` standard deviations."""
        mean, trials = self.mean, FIRST_WEIGHT + sum(self.counts)
        return min(HIGHEST, mean + LUCK * math.sqrt(mean * (1 - mean) / trials))

    def judged(self, kept: float, lost: float) -> bool:
        """So many trials more; whether the rate has changed."""
        found, mean = (kept, lost), self.mean
        changed = [since for change in self._changes if (since := change.tell(found, mean))]
        forgotten = (1 - 1 / POPULATION_WINDOW) ** (kept + lost)
        self.counts = (self.counts[0] * forgotten + kept, self.counts[1] * forgotten + lost)
        if changed:
            self.counts = changed[0]
        return bool(changed)


class _Change:
    """Watches for a rate that is ``step`` higher or lower than it seems."""

    def __init__(self, step: float) -> None:
        self._step = step
        self._restart()

    def _restart(self) -> None:
        self._evidence = 0.0
        self._since = (0.0, 0.0)

    def tell(self, found: tuple[float, float], mean: float) -> tuple[float, float] | None:
        """So many trials more succeeded and failed. Those since the change, if there was one."""
        mean = min(max(mean, LOWEST), HIGHEST)
        other = min(max(mean + self._step, LOWEST), HIGHEST)
        kept, lost = found
        self._evidence += kept * math.log(other / mean) + lost * math.log((1 - other) / (1 - mean))
        self._since = (self._since[0] + kept, self._since[1] + lost)
        if self._evidence <= 0:
            self._restart()
        elif self._evidence > ALARM:
            since = self._since
            self._restart()
            return since
        return None


def _mean(found: tuple[float, float], first: float, weight: float) -> float:
    return (weight * first + found[0]) / (weight + sum(found))
