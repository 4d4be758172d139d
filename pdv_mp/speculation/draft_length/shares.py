"""How the drafts of a cycle are divided among its sequences.

Either all get the same, or a portion of that is given to those that would end last. The second is
for batches whose sequences nobody follows: what counts there is when the last one ends, and a
sequence whose drafts are seldom kept would go on alone, at nearly the price of all together. A
token of a sequence that needs n more cycles is worth n ** :data:`URGENCY`, beside the others': the
derivative of the sum of n ** (URGENCY + 1), which is a smooth stand-in for the largest n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pdv_mp.speculation.draft_length.controller import Column

Floats = npt.NDArray[np.float64]

URGENCY = 4.0
MOST_WORTH = 4.0
"""By how much a sequence's tokens may be worth more, or less, than another's: the first ones to end
have to wait for the rows of the last."""
PORTION = 0.5
"""Of the drafts that all would have: a few rows may cost much less each than one for everybody."""


@dataclass(frozen=True, slots=True)
class Shares:
    """N ways to divide drafts among B sequences, by rows, the first of which is to draft nothing.

    ``longest`` [N]: the longest draft that was allowed; ``portions`` [N]: of what drafts of that
    length for all would be; ``lengths`` [N, B]: of each sequence; ``rows`` [N], ascending: that are
    verified. ``worth`` [B]: of a token of each, 1 on average.
    """

    longest: Column
    portions: Floats
    lengths: Column
    rows: Floats
    worth: Floats

    @property
    def steps(self) -> Column:
        """Of the draft model, [N]."""
        steps: Column = self.lengths.max(axis=1)
        return steps

    @property
    def drafting(self) -> int:
        """Sequences that may have drafts."""
        return int((self.lengths[-1] > 0).sum())

    def at(self, longest: int, portion: float) -> int:
        """The index of one of them, or of what comes next to it if it is not there."""
        off = np.abs(self.longest - min(longest, int(self.longest[-1])))
        return int((off + np.abs(self.portions - portion)).argmin())

    def tokens(self, survival: Floats) -> Floats:
        """What cycles emit on average, as much as each token is worth, [N]. ``survival`` [B, K]:
        the probability that the first 1 .. K drafts are all kept."""
        kept = np.zeros((survival.shape[0], survival.shape[1] + 1))
        np.cumsum(survival, axis=1, out=kept[:, 1:])
        emitted = 1 + np.take_along_axis(kept, self.lengths.T, axis=1)
        tokens: Floats = self.worth @ emitted
        return tokens


def equal_shares(limits: Column) -> Shares:
    """All get the same, each up to its limit. ``limits`` [B], not all 0."""
    longest = np.arange(int(limits.max()) + 1)
    lengths = np.minimum(limits, longest[:, None])
    rows = (len(limits) + lengths.sum(axis=1)).astype(float)
    return Shares(longest, np.ones(len(longest)), lengths, rows, np.ones(len(limits)))


def shares_of_the_last(limits: Column, remaining: Column, survival: Floats) -> Shares:
    """All get the same, or those that would end last a portion of it. ``limits``, ``remaining``
    [B]: drafts that each may have, not all 0, and tokens that it may still get; ``survival`` [B,
    K], K the largest limit."""
    cycles = remaining / (1 + survival[:, 0])
    worth = np.clip((cycles / cycles.mean()) ** URGENCY, 1 / MOST_WORTH, MOST_WORTH)
    worth /= worth.mean()
    equal = equal_shares(limits)
    drafts = (PORTION * (equal.rows - len(limits))).astype(np.int64)
    divided = np.flatnonzero(drafts)
    drafts = drafts[divided]
    rows = np.concatenate([equal.rows, len(limits) + drafts])
    portions = np.concatenate([equal.portions, np.full(len(divided), PORTION)])
    order = np.lexsort((portions, rows))
    best = _best_drafts(limits, survival * worth[:, None], divided, drafts)
    return Shares(
        longest=np.concatenate([equal.longest, divided])[order],
        portions=portions[order],
        lengths=np.concatenate([equal.lengths, best])[order],
        rows=rows[order],
        worth=worth,
    )


def _best_drafts(limits: Column, values: Floats, longest: Column, drafts: Column) -> Column:
    """Lengths [N, B] of as many ``drafts`` [N] as there shall be, each no longer than its
    ``longest`` [N], so that their ``values`` [B, K], which fall with K, are greatest."""
    sequences, width = values.shape
    # Stable, so that of equal ones a sequence's earlier draft comes first.
    order = np.argsort(-values, axis=None, kind="stable")
    whose, place = np.divmod(order, width)
    allowed = place < np.minimum(limits[whose], longest[:, None])
    taken = allowed & (np.cumsum(allowed, axis=1) <= drafts[:, None])
    which, found = np.nonzero(taken)
    counts = np.bincount(which * sequences + whose[found], minlength=len(drafts) * sequences)
    return counts.reshape(len(drafts), sequences).astype(np.int64)
