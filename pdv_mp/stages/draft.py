"""Draft: the small model runs ahead, one forward per draft token for the whole batch."""

from __future__ import annotations

import numpy as np

from pdv_mp.counters import Counters
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.resources import ModelRunner
from pdv_mp.sequences import SequenceTable
from pdv_mp.speculation.acceptance import AcceptanceRule, DraftLaws
from pdv_mp.stages.messages import Column, DraftOrder, Proposal, Verdict


class DraftStage:
    """Proposes tokens with the draft model, chosen as the acceptance rule wants them."""

    name = "draft"

    def __init__(
        self,
        table: SequenceTable,
        draft: ModelRunner,
        rule: AcceptanceRule,
        counters: Counters,
    ) -> None:
        self._table = table
        self._draft = draft
        self._rule = rule
        self._counters = counters
        self.inbox: DraftOrder | None = None

    def put(self, order: DraftOrder) -> None:
        """Take over the slots of an order until their proposal is returned."""
        if self.inbox is not None:
            raise RuntimeError("a draft order arrived before the last one was run")
        self.inbox = order

    def form(self) -> DraftOrder | None:
        """The order to run next."""
        order, self.inbox = self.inbox, None
        return order

    def run(self, order: DraftOrder) -> Proposal:
        """``max(lengths)`` forwards of the draft.

        The first one also feeds what the draft's cache lacks: one token after a rejection, two
        after a full acceptance (the last draft token was never fed), more after cycles without
        drafting. The token at absolute position ``base + i`` is proposed by step i.
        """
        table = self._table
        ids = np.full((len(order.slots), int(order.lengths.max())), -1, np.int64)
        laws = DraftLaws(*ids.shape)
        starts = table.draft_len[order.slots]
        fed = order.base - starts
        token_ids = table.ragged_tokens(order.slots, starts, fed)
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
            self._counters.draft_forwards += 1
            rows = table.sampling.rows(batch.slots, order.base[active] + step)
            drafts = self._rule.propose(logits, rows)
            ids[active, step] = drafts.ids.cpu().numpy()
            laws.put(active, step, drafts.law)
        table.draft_len[order.slots] = order.base + order.lengths - 1
        return Proposal(order.slots, order.base, order.lengths, ids, laws.tensor)

    def _batch(self, token_ids: Column, fed: Column, starts: Column, slots: Column) -> ForwardBatch:
        """A batch with the logits of each sequence's last row."""
        ends = np.cumsum(fed)
        logit_rows = None if ends[-1] == len(fed) else ends - 1
        return ForwardBatch.build(token_ids, fed, starts, slots, logit_rows, self._draft.device)

    def commit(self, verdict: Verdict) -> None:
        """Forget the rows of rejected drafts. The last draft token was never fed, so after a full
        acceptance the cache lacks it and the next order feeds two tokens."""
        slots = verdict.proposal.slots
        kept = verdict.proposal.base + verdict.accepted
        self._table.draft_len[slots] = np.minimum(self._table.draft_len[slots], kept)
