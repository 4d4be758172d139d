"""Prefill: prompts into the caches of both models, chunk by chunk."""

from __future__ import annotations

from collections import deque

import numpy as np

from pdv_mp.counters import Counters
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.resources import ModelRunner
from pdv_mp.sequences import SequenceTable
from pdv_mp.speculation.sampling import sample
from pdv_mp.stages.messages import PrefillBatch, Prefilled


class PrefillStage:
    """Fills both models' KV of admitted prompts and samples the first token of each."""

    name = "prefill"

    def __init__(
        self,
        table: SequenceTable,
        target: ModelRunner,
        draft: ModelRunner | None,
        counters: Counters,
    ) -> None:
        self._table = table
        self._target = target
        self._draft = draft
        self._counters = counters
        self.inbox: deque[int] = deque()

    def put(self, slot: int) -> None:
        """Take over an admitted slot until its prompt is done or it is withdrawn."""
        self.inbox.append(slot)

    def withdraw(self, slot: int) -> None:
        """Hand back a slot whose prompt is no longer wanted."""
        self.inbox.remove(slot)

    def form(self, max_tokens: int) -> PrefillBatch | None:
        """The next chunks, first come first served, of at most ``max_tokens`` tokens together."""
        slots, starts, lengths, finishes = [], [], [], []
        room = max_tokens
        for slot in self.inbox:
            if room == 0:
                break
            start = int(self._table.target_len[slot])
            left = int(self._table.num_prompt[slot]) - start
            length = min(left, room)
            room -= length
            slots.append(slot)
            starts.append(start)
            lengths.append(length)
            finishes.append(length == left)
        if not slots:
            return None
        return PrefillBatch(
            np.array(slots, np.int64),
            np.array(starts, np.int64),
            np.array(lengths, np.int64),
            np.array(finishes, np.bool_),
        )

    def run(self, batch: PrefillBatch) -> Prefilled:
        """Run the chunks through both models; slots whose prompt is complete leave the inbox."""
        table = self._table
        ends = np.cumsum(batch.lengths)
        token_ids = table.ragged_tokens(batch.slots, batch.starts, batch.lengths)
        logits = self._target.forward(
            ForwardBatch.build(
                token_ids,
                batch.lengths,
                batch.starts,
                batch.slots,
                logit_rows=ends[batch.finishes] - 1,
                device=self._target.device,
            )
        )
        self._counters.prefill_forwards += 1
        self._counters.prefill_tokens += len(token_ids)
        table.target_len[batch.slots] += batch.lengths
        self._fill_draft(batch)

        done = batch.slots[batch.finishes]
        if len(done) == 0:
            return Prefilled(done, done)
        for _ in range(len(done)):
            self.inbox.popleft()
        rows = table.sampling.rows(done, table.num_prompt[done])
        return Prefilled(done, sample(logits, rows).cpu().numpy())

    def _fill_draft(self, batch: PrefillBatch) -> None:
        wanted = self._table.speculates[batch.slots]
        if self._draft is None or not wanted.any():
            return
        slots, starts, lengths = batch.slots[wanted], batch.starts[wanted], batch.lengths[wanted]
        self._draft.forward(
            ForwardBatch.build(
                self._table.ragged_tokens(slots, starts, lengths),
                lengths,
                starts,
                slots,
                logit_rows=np.zeros(0, np.int64),
                device=self._draft.device,
            )
        )
        self._counters.draft_prefill_forwards += 1
        self._table.draft_len[slots] += lengths
