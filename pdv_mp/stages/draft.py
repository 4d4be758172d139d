"""Draft: the small model runs ahead, one forward per draft token for the whole batch."""

from __future__ import annotations

from collections import deque

import numpy as np

from pdv_mp.model.batch import ForwardBatch
from pdv_mp.resources import ModelRunner
from pdv_mp.speculation.acceptance import AcceptanceRule, DraftLaws
from pdv_mp.speculation.sampling import SamplingTable
from pdv_mp.stages.messages import Column, DraftOrder, Proposal


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
        fed = order.base - order.starts
        token_ids = order.ids.astype(np.int64)
        active = np.arange(len(order.slots))
        cache = self._draft.cache
        batch = self._batch(token_ids, fed, order.starts, order.slots)
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

    def _batch(self, token_ids: Column, fed: Column, starts: Column, slots: Column) -> ForwardBatch:
        """A batch with the logits of each sequence's last row."""
        ends = np.cumsum(fed)
        logit_rows = None if ends[-1] == len(fed) else ends - 1
        return ForwardBatch.build(token_ids, fed, starts, slots, logit_rows, self._draft.device)
