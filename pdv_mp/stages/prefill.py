"""Prefill: prompts into the caches of both models, chunk by chunk."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor

from pdv_mp.counters import Counters
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.resources import ModelRunner
from pdv_mp.sequences import SequenceTable, ragged_range
from pdv_mp.speculation.sampling import sample
from pdv_mp.stages.logprobs import emitted_logprobs, prompt_chunk_logprobs
from pdv_mp.stages.messages import PrefillBatch, Prefilled, PromptChunkLogprobs

MAX_PROMPT_LOGITS = 1 << 26
"""Logits for prompt log-probabilities in one batch, which bounds their memory to 256 MiB."""


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
        """The next chunks, first come first served, of at most ``max_tokens`` tokens together.

        Prompts whose log-probabilities are wanted need logits at every token, so they come in
        chunks that may be smaller; nothing overtakes them.
        """
        slots, starts, lengths, finishes = [], [], [], []
        room = max_tokens
        logit_room = max(1, MAX_PROMPT_LOGITS // self._target.vocab_size)
        for slot in self.inbox:
            if room == 0:
                break
            start = int(self._table.target_len[slot])
            left = int(self._table.num_prompt[slot]) - start
            length = min(left, room)
            if self._table.prompt_logprobs[slot] >= 0:
                length = min(length, logit_room)
                logit_room -= length
                if length == 0:
                    break
            room = room - length if length == left else 0
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
        wanted = table.prompt_logprobs[batch.slots] >= 0
        num_logits = np.where(wanted, batch.lengths, batch.finishes)  # at each chunk's end
        logit_ends = np.cumsum(num_logits)
        token_ids = table.ragged_tokens(batch.slots, batch.starts, batch.lengths)
        logits = self._target.forward(
            ForwardBatch.build(
                token_ids,
                batch.lengths,
                batch.starts,
                batch.slots,
                logit_rows=ragged_range(ends - num_logits, num_logits),
                device=self._target.device,
            )
        )
        self._counters.prefill_forwards += 1
        self._counters.prefill_tokens += len(token_ids)
        table.target_len[batch.slots] += batch.lengths
        self._fill_draft(batch)

        prompt_logprobs = tuple(
            self._prompt_logprobs(batch, int(chunk), logits, int(logit_ends[chunk]))
            for chunk in np.flatnonzero(wanted)
        )
        done = batch.slots[batch.finishes]
        if len(done) == 0:
            return Prefilled(done, done, batch.slots, None, prompt_logprobs)
        for _ in range(len(done)):
            self.inbox.popleft()
        rows = table.sampling.rows(done, table.num_prompt[done])
        if len(logits) > len(done):
            last_rows = torch.from_numpy(logit_ends[batch.finishes] - 1)
            logits = logits.index_select(0, last_rows.to(logits.device))
        next_ids = sample(logits, rows).cpu().numpy()
        each = np.arange(len(done))
        logprobs = emitted_logprobs(
            logits, each, next_ids[:, None], np.ones_like(each), table.logprobs[done]
        )
        return Prefilled(done, next_ids, batch.slots, logprobs, prompt_logprobs)

    def _prompt_logprobs(
        self, batch: PrefillBatch, chunk: int, logits: Tensor, logit_end: int
    ) -> PromptChunkLogprobs:
        """Of the tokens that a chunk's rows decide: each row the next token of the prompt, so that
        a chunk's last row decides the first token of the next chunk."""
        table = self._table
        slot, length = int(batch.slots[chunk]), int(batch.lengths[chunk])
        start = int(batch.starts[chunk]) + 1
        ids = table.tokens[slot, start : min(start + length, int(table.num_prompt[slot]))]
        return prompt_chunk_logprobs(
            logits,
            logit_end - length,
            slot,
            start,
            ids.astype(np.int64),
            int(table.prompt_logprobs[slot]),
        )

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
