"""Draft: the small model runs ahead, one forward per draft token for the whole batch."""

from __future__ import annotations

from collections import deque

import numpy as np

from pdv_mp.model.batch import ForwardBatch
from pdv_mp.resources.resources import ModelRunner
from pdv_mp.scheduling.columns import ragged_range
from pdv_mp.speculation.acceptance import AcceptanceRule, DraftLaws
from pdv_mp.speculation.sampling import SamplingTable
from pdv_mp.speculation.shared_gumbel import SharedGumbel
from pdv_mp.stages.draft_ahead import Ahead
from pdv_mp.stages.messages import USUALLY_FED, Column, DraftOrder, Proposal
from pdv_mp.stages.messages import known as known_ids

MAX_FED = 256
"""Tokens of a text that may be fed together with the first step of its draft."""

MAX_FED_TOGETHER = 512
"""The same for the texts of a batch together."""


class DraftStage:
    """Proposes tokens with the draft model, chosen as the acceptance rule wants them.

    It keeps nothing between orders but the sampling parameters of the slots that it was told of.
    """

    name = "draft"

    def __init__(
        self, draft: ModelRunner, rule: AcceptanceRule, num_slots: int, defers: bool = False
    ) -> None:
        """``defers``: return proposals whose ids the device is still computing, where it can."""
        self._draft = draft
        self._rule = rule
        self._defers = defers
        self._sampling = SamplingTable(num_slots)
        self.inbox: deque[DraftOrder] = deque()
        self._ahead: Ahead | None = None
        self.ahead_drafts = 0
        self.ahead_hits = 0

    def put(self, order: DraftOrder) -> None:
        """Take over the slots of an order until their proposal is returned."""
        self.inbox.append(order)

    def form(self) -> DraftOrder | None:
        """The order to run next."""
        return self.inbox.popleft() if self.inbox else None

    def run(self, order: DraftOrder) -> Proposal:
        """``max(lengths)`` forwards of the draft.

        The first one also feeds what the draft's cache lacks: one token after a rejection, two
        after a full acceptance (the last draft token was never fed), more after cycles without
        drafting. The token at absolute position ``base + i`` is proposed by step i. Afterwards the
        cache holds ``base + lengths - 1`` rows.
        """
        self._sampling.put(order.slots[order.fresh], order.sampling)
        ids = np.full((len(order.slots), int(order.lengths.max())), -1, np.int64)
        laws = DraftLaws(*ids.shape)
        known = self._use_ahead(order, ids)
        proposal = None
        if not known.any():
            proposal = self._run_recorded(order, ids) or self._run_at_once(order)
        if proposal is not None:
            return proposal
        batch, plan, active = None, None, np.flatnonzero(known < order.lengths)
        step = 0
        while len(active):
            if step == 0:
                batch = self._first_batch(order, ids, known, active)
                plan = self._draft.plan(batch)
            else:
                going = active[known[active] < order.lengths[active]]
                token_ids = ids[going, known[going] - 1]
                if batch is not None and len(going) == len(active):
                    batch = batch.advance(token_ids)
                    plan = None if plan is None else self._draft.cache.advance(plan, batch)
                elif len(going):
                    active = going
                    batch = self._batch(
                        token_ids,
                        np.ones_like(active),
                        order.base[active] + known[active] - 1,
                        order.slots[active],
                    )
                    plan = self._draft.plan(batch)
                else:
                    break
            logits = self._draft.forward(batch, plan)
            rows = self._sampling.rows(batch.slots, order.base[active] + known[active])
            drafts = self._rule.propose(logits, rows)
            ids[active, known[active]] = drafts.ids.cpu().numpy()
            laws.put(active, step, drafts.law)
            known[active] += 1
            step += 1
        return Proposal(order.slots, order.base, order.lengths, ids, laws.tensor)

    def _run_recorded(self, order: DraftOrder, ids: Column) -> Proposal | None:
        """The whole draft as one replay; None where nothing such is recorded."""
        steps = self._draft.steps
        if steps is None or not isinstance(self._rule, SharedGumbel):
            return None
        rows = self._sampling.rows(order.slots, order.base)
        if not steps.can_draft(len(order.slots), rows):
            return None
        token_ids, starts = self._catch_up(order, steps.max_fed)
        pending = steps.draft(
            token_ids, order.base - starts, order.slots, order.base, order.lengths, rows
        )
        proposal = Proposal(order.slots, order.base, order.lengths, ids, pending=pending)
        return proposal if self._defers else known_ids(proposal)

    def _run_at_once(self, order: DraftOrder) -> Proposal | None:
        """The whole draft as one call of the model; None where it takes one step at a time, or does
        not choose tokens as some sequence wants it."""
        runner = self._draft
        rows = self._sampling.rows(order.slots, order.base)
        if runner.drafter is None or not runner.drafter.can_draft(rows):
            return None
        token_ids, starts = self._catch_up(order, MAX_FED)
        ids = runner.drafter.draft(
            self._batch(token_ids, order.base - starts, starts, order.slots),
            runner.cache,
            order.lengths,
            runner.vocab_size,
            rows,
        )
        return Proposal(order.slots, order.base, order.lengths, ids)

    def _first_batch(
        self, order: DraftOrder, ids: Column, known: Column, active: Column
    ) -> ForwardBatch:
        """What the caches lack, or the last draft that is known of an entry already."""
        token_ids, starts = self._catch_up(order, MAX_FED)
        fed = order.base - starts
        if not known[active].any() and len(active) == len(order.slots):
            return self._batch(token_ids, fed, starts, order.slots)
        ends = np.cumsum(fed)
        parts = [
            ids[row, known[row] - 1 : known[row]] if known[row] else token_ids[end - count : end]
            for row, end, count in zip(active, ends[active], fed[active], strict=True)
        ]
        lacking = known[active] == 0
        return self._batch(
            np.concatenate(parts),
            np.where(lacking, fed[active], 1),
            np.where(lacking, starts[active], order.base[active] + known[active] - 1),
            order.slots[active],
        )

    # ------------------------------------------------------------------ draft-ahead

    def begin_ahead(self, proposal: Proposal) -> None:
        """Be ready to go on from a proposal that was just made. The slots stay with the stage until
        its next order, or :meth:`halt`."""
        self._ahead = Ahead.after(proposal, self._draft.cache.capacity(proposal.slots))

    def run_ahead(self) -> bool:
        """One more guess for every sequence of the last proposal; False if there is none to make.

        The guess at absolute position ``base - 1 + i`` is made by step i.
        """
        ahead = self._ahead
        if ahead is None or ahead.is_complete:
            return False
        step = ahead.guesses.shape[1]
        batch = self._batch(
            ahead.guesses[:, -1] if step else ahead.last,
            np.ones_like(ahead.slots),
            ahead.base - 2 + step,
            ahead.slots,
        )
        rows = self._sampling.rows(ahead.slots, ahead.base - 1 + step)
        drafts = self._rule.propose(self._draft.forward(batch), rows)
        guess = drafts.ids.cpu().numpy()[:, None]
        ahead.guesses = np.concatenate([ahead.guesses, guess], axis=1)
        self.ahead_drafts += len(ahead.slots)
        return True

    def halt(self) -> None:
        """Hand back the slots of the last proposal; what was guessed for them is lost."""
        self._ahead = None

    def _use_ahead(self, order: DraftOrder, ids: Column) -> Column:
        """Write the drafts that were guessed into ``ids``; how many each entry has, [B]."""
        known = np.zeros(len(order.slots), np.int64)
        if self._ahead is not None:
            for row, drafts in enumerate(self._ahead.found(order)):
                known[row] = len(drafts)
                ids[row, : len(drafts)] = drafts
                self.ahead_hits += len(drafts)
            self._ahead = None
        return known

    # ------------------------------------------------------------------ feeding

    def _catch_up(self, order: DraftOrder, most: int) -> tuple[Column, Column]:
        """Tokens to feed with the first step, and where those of each slot start. Of a text that
        the cache lacks more of than ``most`` tokens, or of any longer one if all together would be
        more than :data:`MAX_FED_TOGETHER`, all but the last one are fed before, so that no step
        grows with the length of texts."""
        token_ids, fed = order.ids.astype(np.int64), order.base - order.starts
        if len(token_ids) > MAX_FED_TOGETHER:
            most = min(most, USUALLY_FED)
        if int(fed.max()) <= most:
            return token_ids, order.starts
        starts, kept = order.starts.copy(), np.ones(len(token_ids), np.bool_)
        ends = np.cumsum(fed)
        rows = np.flatnonzero(fed > most)
        first, last = ends[rows] - fed[rows], ends[rows] - 1
        while len(rows):
            # As much of each text as fits, the first ones first.
            left = np.minimum(last - first, MAX_FED)
            count = max(1, int(np.searchsorted(np.cumsum(left), MAX_FED_TOGETHER, "right")))
            lengths, slots = left[:count], rows[:count]
            fed_now = ragged_range(first[:count], lengths)
            batch = ForwardBatch.build(
                token_ids[fed_now],
                lengths,
                starts[slots],
                order.slots[slots],
                logit_rows=np.zeros(0, np.int64),
                device=self._draft.device,
            )
            self._draft.forward(batch)
            kept[fed_now] = False
            starts[slots] += lengths
            first[:count] += lengths
            going = first < last
            rows, first, last = rows[going], first[going], last[going]
        return token_ids[kept], starts

    def _batch(self, token_ids: Column, fed: Column, starts: Column, slots: Column) -> ForwardBatch:
        """A batch with the logits of each sequence's last row."""
        ends = np.cumsum(fed)
        logit_rows = None if ends[-1] == len(fed) else ends - 1
        return ForwardBatch.build(token_ids, fed, starts, slots, logit_rows, self._draft.device)
