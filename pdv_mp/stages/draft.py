"""Draft: the small model runs ahead, one forward per draft token for the whole batch."""

from __future__ import annotations

from collections import deque

import numpy as np

from pdv_mp.model.batch import ForwardBatch
from pdv_mp.resources import ModelRunner
from pdv_mp.speculation.acceptance import AcceptanceRule, DraftLaws
from pdv_mp.speculation.sampling import SamplingTable
from pdv_mp.stages.messages import Column, DraftOrder, Proposal

MAX_FED = 256
"""Tokens of a text that may be fed together with the first step of its draft."""


class DraftStage:
    """Proposes tokens with the draft model, chosen as the acceptance rule wants them.

    It keeps nothing between orders but the sampling parameters of the slots that it was told of.
    """

    name = "draft"

    def __init__(self, draft: ModelRunner, rule: AcceptanceRule, num_slots: int) -> None:
        self._draft = draft
        self._rule = rule
        self._sampling = SamplingTable(num_slots)
        self.inbox: deque[DraftOrder] = deque()

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
        token_ids, starts = self._catch_up(order)
        fed = order.base - starts
        active = np.arange(len(order.slots))
        cache = self._draft.cache
        batch = self._batch(token_ids, fed, starts, order.slots)
        plan = cache.plan(batch)
        for step in range(ids.shape[1]):
            if step:
                going = active[order.lengths[active] > step]
                token_ids = ids[going, step - 1]
                if len(going) == len(active):
                    batch = batch.advance(token_ids)
                    plan = cache.advance(plan, batch)
                else:
                    active = going
                    batch = self._batch(
                        token_ids,
                        np.ones_like(active),
                        order.base[active] + step - 1,
                        order.slots[active],
                    )
                    plan = cache.plan(batch)
            logits = self._draft.forward(batch, plan)
            rows = self._sampling.rows(batch.slots, order.base[active] + step)
            drafts = self._rule.propose(logits, rows)
            ids[active, step] = drafts.ids.cpu().numpy()
            laws.put(active, step, drafts.law)
        return Proposal(order.slots, order.base, order.lengths, ids, laws.tensor)

    def _catch_up(self, order: DraftOrder) -> tuple[Column, Column]:
        """Tokens to feed with the first step, and where those of each slot start. Of a text that
        the cache lacks more of than :data:`MAX_FED` tokens all but the last one are fed before, in
        batches of its own, so that no step grows with the length of texts."""
        token_ids, fed = order.ids.astype(np.int64), order.base - order.starts
        if int(fed.max()) <= MAX_FED:
            return token_ids, order.starts
        starts, kept = order.starts.copy(), np.ones(len(token_ids), np.bool_)
        ends = np.cumsum(fed)
        for row in np.flatnonzero(fed > MAX_FED):
            first, last = int(ends[row] - fed[row]), int(ends[row]) - 1
            kept[first:last] = False
            for begin in range(first, last, MAX_FED):
                part = token_ids[begin : min(begin + MAX_FED, last)]
                slot = order.slots[row : row + 1]
                batch = ForwardBatch.build(
                    part,
                    np.array([len(part)]),
                    starts[row : row + 1],
                    slot,
                    logit_rows=np.zeros(0, np.int64),
                    device=self._draft.device,
                )
                self._draft.forward(batch)
                starts[row] += len(part)
        return token_ids[kept], starts

    def _batch(self, token_ids: Column, fed: Column, starts: Column, slots: Column) -> ForwardBatch:
        """A batch with the logits of each sequence's last row."""
        ends = np.cumsum(fed)
        logit_rows = None if ends[-1] == len(fed) else ends - 1
        return ForwardBatch.build(token_ids, fed, starts, slots, logit_rows, self._draft.device)
