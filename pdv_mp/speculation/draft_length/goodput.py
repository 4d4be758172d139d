"""The draft length that yields most tokens per second.

With B sequences of which each has probability p_j that its first j drafts are all kept, a cycle
that drafts k tokens emits B + sum_j<=k sum_b p_j tokens and takes

    T(k) = k * T_draft(B) + T_verify(B, k + 1) + T_overhead(k) + tokens(k) * reading

(reading: what the draft needs of prompts, for each token, because something is drafted).

The controller takes the k in 0 .. K for which tokens divided by time is greatest (SmartSpec, arXiv
2406.14066, with 0 allowed, costs and acceptance measured while serving, and each sequence with a
probability of its own). Where drafting has a process of its own and the batch is divided, the
draft of one group runs beside the verification of another: see :meth:`Goodput._cycle_ns`.

- Stability: the length changes for a predicted gain of more than :data:`GAIN`, at the earliest
  :data:`DWELL` cycles after the last change, or when the batch has become twice or half as large.
  A smaller gain must have been predicted for so long
  that, had it been taken, it would have saved :data:`PATIENCE` cycles: so no loss goes on for ever.
- Lengths whose cost is not known are tried if they could pay under the most favourable cost that is
  possible; at first at most twice as long as those that are known, and one more.
- What a measurement says that was disturbed is not believed for ever: a length of which few steps
  were served of late, and which would be better than the present one if it cost as little as the
  sure ones allow, is looked at for a cycle now and then. What looks are expected to lose is at most
  :data:`LOOK_SHARE` of the time.
- Where requests end at their limits and are not followed by others, those that would end last are
  drafted for first (:mod:`.shares`), and drafting must be worth more, since a batch that drafts
  ends raggedly all the same: see :meth:`Goodput._ragged`.
- While the length is 0 there is no draft forward and no message, but for explorations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pdv_mp.speculation.draft_length.acceptance_estimate import AcceptanceEstimate
from pdv_mp.speculation.draft_length.controller import Column, CycleTimes, Decisions, DecodeBatch
from pdv_mp.speculation.draft_length.draft_costs import DraftCosts
from pdv_mp.speculation.draft_length.exploration import MAX_SEQUENCES, Exploration
from pdv_mp.speculation.draft_length.shares import Shares, equal_shares, shares_of_the_last
from pdv_mp.speculation.draft_length.step_costs import (
    BATCHES_PER_OCTAVE,
    StepCosts,
    batch_bucket,
)
from pdv_mp.speculation.draft_length.turnover import Turnover

Floats = npt.NDArray[np.float64]

FIRST_LENGTH = 2
"""Before anything is known."""
GAIN = 0.03
"""Predicted share of tokens per second that a change must be worth."""
CAUTION = 0.01
"""Share of tokens per second that drafting must be worth at all."""
RAGGED = 0.1
"""Share of the time of batches that end raggedly which is lost by that, where small batches take as
long as large ones."""
FEW_FOLLOW = 0.5
"""Share of requests that are followed by others from which on all are drafted for alike."""
MOST_AT_LIMIT = 0.5
"""Share of requests that end at their limits up to which all are drafted for alike."""
SPREAD = 0.09
"""Coefficient of variation of the cycles that sequences need when they draft."""
DWELL = 8
"""Cycles that a length stays."""
PATIENCE = 0.3
"""Cycles that smaller gains must have added up to."""
SILENT_INTERVAL = 16
"""Cycles between two decisions while nothing is drafted."""
WORTH_SHARE = 0.7
"""Share of what a row seems to cost that a looked-up draft must be worth."""
MAX_TRIAL = 6
"""Cycles after which a trial ends, whatever has been measured."""
SETTLED_INTERVAL = 4
"""Cycles between two decisions while the batch stays what it is."""
ALONE_INTERVAL = 8
"""The same for one sequence: its cycles are short, and a decision takes as long as for many."""
CATCH_UP_HORIZON = 64
"""Cycles over which the price of bringing the draft's cache up to date is spread."""
LOOK_SHARE = 0.005
"""Of the time, which looks may lose."""
FIRST_LOOKS = 1.0
"""Cycles that the first ones may lose."""
MOST_LOOKS = 2.0
"""Cycles for which what is not lost is kept."""
LOOK_INTERVAL = 16
"""Cycles after which it is asked again whether there is anything to look at."""
OVERHEAD_RATE = 0.1
MAX_RATIO = 2.0
"""An overhead of more than this times the usual one counts as that much."""


class Goodput:
    """``overlap``: groups of sequences that take turns, so that one is drafted while another is
    verified; 1 where a cycle drafts and then verifies. ``lookup_kinds``: drafts are looked up and
    not computed; they cost verification only, and are of so many kinds. Of a kind that is too
    seldom kept to pay for its rows none are taken."""

    name = "goodput"

    def __init__(
        self, max_length: int, num_slots: int, overlap: int = 1, lookup_kinds: int = 0
    ) -> None:
        self.max_length = max_length
        self.decisions = Decisions()
        self._overlap = overlap
        self._looks_up = lookup_kinds > 0
        self._estimate = AcceptanceEstimate(num_slots, max_length, max(1, lookup_kinds))
        self._verify = StepCosts()
        self._draft = DraftCosts()
        self._overhead_ns = [0.0, 0.0]
        self._read_ns = 0.0
        self._exploration = Exploration()
        self._length = min(FIRST_LENGTH, max_length)
        self._portion = 1.0
        self._share = np.full(num_slots, self._length, np.int64)
        self._since_change = 0
        self._since_decision = 0
        self._bucket = self._bucket_of_change = -1
        self._is_trying = False
        self._missed = 0.0
        self._passed = 0
        self._worth = 0.0
        self._look_at: Column | None = None
        self._looks_left = FIRST_LOOKS
        self._since_look = 0
        self._turnover = Turnover(num_slots)

    @property
    def length(self) -> int:
        return self._length

    @property
    def acceptance(self) -> float:
        return self._estimate.mean

    # ------------------------------------------------------------------ what has happened

    def judged(self, slots: Column, lengths: Column, accepted: Column) -> None:
        self._estimate.judged(slots, lengths, accepted)

    def forget(self, slot: int) -> None:
        self._estimate.forget(slot)
        self._turnover.replaced(slot)
        self._share[slot] = self._length

    def timed(self, times: CycleTimes) -> None:
        self._verify.add(times.sequences, times.rows, times.context, times.verify_ns)
        if times.drafting:
            self._draft.add(times.drafting, times.steps, times.fed, times.draft_ns)
        if times.overhead_ns is not None:
            which = int(times.drafting > 0)
            so_far, found = self._overhead_ns[which], float(times.overhead_ns)
            rate = OVERHEAD_RATE if so_far else 1.0
            found = min(found, MAX_RATIO * so_far) if so_far else found
            self._overhead_ns[which] += rate * (found - so_far)

    def rehearsed(self, times: Sequence[CycleTimes], read_ns: float = 0.0) -> None:
        self._read_ns = read_ns
        if not times:
            return
        context = times[0].context // times[0].sequences
        verify = {(t.sequences, t.rows // t.sequences): t.verify_ns for t in times}
        self._verify.rehearsed(verify, context)
        drafts = {(t.drafting, t.steps): t.draft_ns for t in times if t.drafting}
        if drafts:
            self._draft.rehearsed(drafts)
        self._since_change = DWELL  # the first length was a guess

    # ------------------------------------------------------------------ decisions

    def passes(self) -> bool:
        """While nothing is drafted, one decision in :data:`SILENT_INTERVAL` cycles is enough."""
        self._passed += 1
        if self._length or self._is_trying or self._passed % SILENT_INTERVAL == 0:
            return False
        if not self._exploration.passed():
            return False
        self._since_change += 1
        self._since_decision += 1
        self.decisions.count(0)
        return True

    def choose(self, batch: DecodeBatch) -> Column:
        limits = np.minimum(batch.limits, self.max_length)
        if not limits.any():
            return limits
        if batch.kinds is not None:
            self._estimate.drafts(batch.slots, batch.kinds)
        self._since_change += 1
        self._since_decision += 1
        bucket = batch_bucket(len(batch.slots))
        is_settled = bucket == self._bucket and not self._is_trying
        allowed = self._worthwhile(batch.slots, limits) if self._looks_up else limits
        interval = ALONE_INTERVAL if len(batch.slots) == 1 else SETTLED_INTERVAL
        if allowed.any() and (not is_settled or self._since_decision >= interval):
            self._bucket = bucket
            self._decide(batch, allowed)
            self._since_decision = 0
        looked_at, self._look_at = self._look_at, None
        share = self._share[batch.slots] if looked_at is None else looked_at
        lengths: Column = np.minimum(allowed, share)
        if looked_at is not None:
            self.decisions.explorations += 1
        if lengths.any():
            self._exploration.reset()
        elif looked_at is None and self._exploration.is_due():
            return self._explore(batch, limits)
        self.decisions.count(int(share.max()) if lengths.any() else 0)
        return lengths

    def _worthwhile(self, slots: Column, limits: Column) -> Column:
        """Limits that end before the first draft that is too seldom kept to pay for its row."""
        survival = self._estimate.survival(slots, int(limits.max()))
        paying: Column = (survival >= self._worth).sum(axis=1)
        return np.minimum(limits, paying)

    def _decide(self, batch: DecodeBatch, limits: Column) -> None:
        cycles = self._since_decision
        most = cycles * (self._length + 1) + self.max_length  # a look may have drafted more
        self._turnover.seen(batch.slots, batch.remaining, cycles, most)
        survival = self._estimate.survival(batch.slots, int(limits.max()))
        shares = self._shares(batch, limits, survival)
        tokens = shares.tokens(survival)
        before = self._before_ns(batch, shares, tokens)
        times, known = self._times(batch, shares, before)
        present = shares.at(self._length, self._portion)
        if self._is_trying or not known.any():
            # A length on trial is kept until its cost is known.
            if not known[present] and self._since_change < MAX_TRIAL:
                return
            if not known.any():
                return
        reach = 2 * int(shares.longest[known].max()) + 1
        if shares.longest[-1] < self._length:
            reach = -1  # all are about to end: no time to try anything
        out_of_reach = ~known & (shares.longest > reach)
        out_of_reach[present] = False
        times[1:] /= 1 - CAUTION - self._ragged(batch, shares, times)
        goodput = np.where(out_of_reach, 0.0, tokens / times)
        best = int(goodput.argmax())
        self._set_worth(times, shares, known)
        if best == 0:
            # Whoever drafts nothing learns nothing: a few unlucky trials are no reason to stop.
            lucky = self._estimate.survival(batch.slots, survival.shape[1], if_lucky=True)
            goodput = np.where(out_of_reach, 0.0, shares.tokens(lucky) / times)
            best = int(goodput.argmax())
        gain = float(goodput[best] / goodput[present]) - 1 if goodput[present] else math.inf
        if best == present:
            self._is_trying, self._missed = False, 0.0
            self._take(batch, shares, present)
            self._consider_a_look(batch, shares, before, tokens, times)
            return
        was_trying, self._is_trying = self._is_trying, False
        self._missed += max(0.0, gain) * max(1, self._since_decision)
        is_other_batch = abs(self._bucket - self._bucket_of_change) >= BATCHES_PER_OCTAVE
        rests = self._since_change < DWELL and known[best] and not (was_trying or is_other_batch)
        if rests or (gain <= GAIN and self._missed < PATIENCE):
            self._take(batch, shares, present)
            self._consider_a_look(batch, shares, before, tokens, times)
            return
        self._is_trying = not bool(known[best])
        self.decisions.trials += self._is_trying
        self.decisions.switches += best != present
        self._length, self._portion = int(shares.longest[best]), float(shares.portions[best])
        self._since_change, self._missed = 0, 0.0
        self._bucket_of_change = self._bucket
        self._take(batch, shares, best)

    def _shares(self, batch: DecodeBatch, limits: Column, survival: Floats) -> Shares:
        """Ways to divide drafts among the sequences, of which one is to be chosen."""
        turnover = self._turnover
        is_known_who = turnover.followed <= FEW_FOLLOW and turnover.at_limit > MOST_AT_LIMIT
        if self._looks_up or not is_known_who or len(limits) == 1:
            return equal_shares(limits)
        return shares_of_the_last(limits, batch.remaining, survival)

    def _take(self, batch: DecodeBatch, shares: Shares, chosen: int) -> None:
        """Draft that much from now on, and more where only this cycle's limit is in the way."""
        lengths = shares.lengths[chosen]
        is_limited = lengths == shares.lengths[-1]
        self._share[:] = self._length
        self._share[batch.slots] = np.where(is_limited, np.maximum(lengths, self._length), lengths)

    def _consider_a_look(
        self, batch: DecodeBatch, shares: Shares, before: Floats, tokens: Floats, times: Floats
    ) -> None:
        """Choose shares for the next cycle alone if they could be better than the present ones.

        ``before``, ``tokens``, ``times`` [N]: what a cycle of each kind takes before it is
        verified, emits, and takes, as far as that is known.
        """
        self._since_look += self._since_decision
        gained = LOOK_SHARE * self._since_decision
        self._looks_left = min(MOST_LOOKS, self._looks_left + gained)
        is_beyond = shares.longest[-1] < self._length
        if self._since_look < LOOK_INTERVAL or self._looks_left <= 0 or is_beyond:
            return
        self._since_look = 0
        present = shares.at(self._length, self._portion)
        context = int(batch.contexts.sum())
        least, sure = self._verify.least(len(batch.slots), shares.rows, context)
        here = float(tokens[present] / times[present])
        hoped = np.where(sure, 0.0, tokens / np.maximum(1.0, self._cycle_ns(before, least)))
        hoped[present] = 0.0
        if not sure[present] or hoped.max() <= (1 + GAIN) * here:
            return
        other = int(hoped.argmax())
        loss = float(times[other] * here - tokens[other]) / float(tokens[present])
        if not self._length and not self._looks_up:
            missed = float(batch.gaps[batch.limits > 0].sum())
            loss += missed * self._draft.fed_ns(len(batch.slots)) / float(times[0])
        if loss <= self._looks_left:
            self._looks_left -= max(0.0, loss)
            self._look_at = shares.lengths[other]

    def _set_worth(self, times: Floats, shares: Shares, known: npt.NDArray[np.bool_]) -> None:
        """How probable it must be that a draft is kept if its row is to pay: what the row costs, in
        tokens that cycles without drafts would emit in that time. It is taken to cost somewhat
        less, since it is the small difference of large numbers."""
        rows = shares.rows
        measured = np.flatnonzero(known)
        last = int(measured.max(initial=0))
        if last and known[0]:
            each = float(times[last] - times[0]) / float(rows[last] - rows[0])
            self._worth = WORTH_SHARE * each * float(rows[0]) / float(times[0])

    def _ragged(self, batch: DecodeBatch, shares: Shares, times: Floats) -> Floats:
        """The share of the time that is lost because sequences with drafts do not end together,
        [N - 1]: nothing where others follow them, where rows cost as much as they take in the
        batch, or where they end one after another in any case, which is so, too, where they do not
        end at their limits."""
        rows = shares.rows
        if len(rows) < 2 or len(batch.slots) < 2:
            return np.zeros(len(rows) - 1)
        mean = float(batch.remaining.mean())
        uneven = float(batch.remaining.std()) / max(1.0, mean)
        made_uneven = (math.hypot(uneven, SPREAD) - uneven) / SPREAD
        each = (times[1:] - times[0]) / (rows[1:] - rows[0])
        fixed = np.clip(1 - each * rows[1:] / times[1:], 0.0, 1.0)
        joint = (1 - self._turnover.followed) * self._turnover.at_limit
        lost: Floats = RAGGED * joint * made_uneven * fixed
        return lost

    def _before_ns(self, batch: DecodeBatch, shares: Shares, tokens: Floats) -> Floats:
        """What cycles of each kind, which emit ``tokens`` [N], take until their verification
        begins, in ns: [N]. Where something is drafted, reading prompts is a part of it: those of
        requests to come, and what the draft lacks of these if nothing was drafted so far."""
        if self._looks_up:
            return np.full(len(shares.longest), self._overhead_ns[0])
        drafting = shares.drafting
        draft_ns, _ = self._draft.estimate(drafting, shares.steps[1:])
        before = np.zeros(len(shares.longest))
        before[1:] = draft_ns + self._overhead_ns[1]
        before[0] = self._overhead_ns[0]
        if not self._length:
            catch_up = float(batch.gaps[batch.limits > 0].sum()) * self._draft.fed_ns(drafting)
            before[1:] += catch_up / min(CATCH_UP_HORIZON, float(batch.remaining.mean()))
        before[1:] += batch.reading * self._read_ns * tokens[1:]
        return before

    def _times(
        self, batch: DecodeBatch, shares: Shares, before: Floats
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """What cycles of each kind take, in ns, and whether that is measured: [N]."""
        context = int(batch.contexts.sum())
        verify_ns, known = self._verify.estimate(len(batch.slots), shares.rows, context)
        if not self._looks_up and not self._draft.is_known(shares.drafting):
            known[1:] = False
        return np.maximum(1.0, self._cycle_ns(before, verify_ns)), known

    def _cycle_ns(self, before: Floats, verify_ns: Floats) -> Floats:
        """How long a group of the batch keeps the verifier from the next one's verdict: all of the
        cycle, or, where others take turns with it, its share of a cycle, but at least the time of
        its own verification."""
        if self._overlap == 1:
            return before + verify_ns
        each: Floats = np.maximum(verify_ns, (before + verify_ns) / self._overlap)
        each[0] = verify_ns[0] + before[0]
        return each

    def _explore(self, batch: DecodeBatch, limits: Column) -> Column:
        """One token for a few sequences, or nothing, where that would cost too much."""
        lengths = np.zeros_like(limits)
        sequences, context = len(limits), int(batch.contexts.sum())
        rows = np.array([sequences, sequences + MAX_SEQUENCES], float)
        verify_ns, _ = self._verify.estimate(sequences, rows, context)
        draft_ns = np.zeros(1)
        if not self._looks_up:
            draft_ns, _ = self._draft.estimate(min(sequences, MAX_SEQUENCES), np.array([1]))
        left = self._exploration.budget_ns(float(verify_ns[0]) + self._overhead_ns[0])
        left -= float(draft_ns[0] + verify_ns[1] - verify_ns[0])
        if left > 0:
            fed_ns = self._draft.fed_ns(sequences) if self._draft.knows_fed else 0.0
            max_fed = left / fed_ns if fed_ns else math.inf
            lengths[self._exploration.pick(limits, batch.gaps, max_fed)] = 1
        explores = bool(lengths.any())
        if explores:
            self._exploration.reset()
        self.decisions.explorations += explores
        self.decisions.count(int(explores))
        return lengths
