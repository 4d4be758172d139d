"""Prefill: prompts into the verifier's cache, and into the draft's where that is wanted, chunk by
chunk."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor

from pdv_mp.model.batch import ForwardBatch
from pdv_mp.resources.resources import ModelRunner
from pdv_mp.scheduling.columns import ragged_range
from pdv_mp.speculation.sampling import Sampler, SamplingTable, sample
from pdv_mp.stages.logprobs import emitted_logprobs, prompt_chunk_logprobs
from pdv_mp.stages.messages import (
    Column,
    PrefillBatch,
    Prefilled,
    PrefillOrder,
    PromptChunkLogprobs,
)
from pdv_mp.workers.device import finish

MAX_PROMPT_LOGITS = 1 << 26
"""Logits for prompt log-probabilities in one batch, which bounds their memory to 256 MiB."""


class _Prompts:
    """What the stage knows of the prompts that it has, in columns by slot.

    ``computed``: tokens that the verifier's cache holds; of one that ``fills_draft`` the
    draft's holds as many.
    """

    def __init__(self, num_slots: int, max_model_len: int) -> None:
        self.tokens = np.zeros((num_slots, max_model_len), np.int32)
        self.length = np.zeros(num_slots, np.int64)
        self.computed = np.zeros(num_slots, np.int64)
        self.fills_draft = np.zeros(num_slots, np.bool_)
        self.logprobs = np.full(num_slots, -1, np.int64)
        self.prompt_logprobs = np.full(num_slots, -1, np.int64)
        self.sampling = SamplingTable(num_slots)

    def put(self, order: PrefillOrder) -> None:
        """Write the columns of an order's slots."""
        slots, counts = order.slots, order.lengths - order.starts
        self.tokens[np.repeat(slots, counts), ragged_range(order.starts, counts)] = order.ids
        self.length[slots] = order.lengths
        self.computed[slots] = order.starts
        self.fills_draft[slots] = order.fills_draft
        self.logprobs[slots] = order.logprobs
        self.prompt_logprobs[slots] = order.prompt_logprobs
        self.sampling.put(slots, order.sampling)

    def ragged_tokens(self, slots: Column, starts: Column, lengths: Column) -> Column:
        """Tokens ``starts[b] .. starts[b] + lengths[b]`` of every slot, flattened."""
        tokens = self.tokens[np.repeat(slots, lengths), ragged_range(starts, lengths)]
        return tokens.astype(np.int64)


class PrefillStage:
    """Fills both models' KV of admitted prompts and samples the first token of each."""

    name = "prefill"

    def __init__(
        self,
        target: ModelRunner,
        draft: ModelRunner | None,
        num_slots: int,
        max_model_len: int,
        sampler: Sampler = sample,
    ) -> None:
        self._sample = sampler
        self._target = target
        self._draft = draft
        self._prompts = _Prompts(num_slots, max_model_len)
        self.inbox: deque[int] = deque()

    def put(self, order: PrefillOrder) -> None:
        """Take over admitted slots until their prompts are complete or they are withdrawn."""
        self._prompts.put(order)
        self.inbox.extend(order.slots.tolist())

    def withdraw(self, slot: int) -> bool:
        """Hand back a slot whose prompt is no longer wanted; False if it was handed back before."""
        if slot not in self.inbox:
            return False
        self.inbox.remove(slot)
        return True

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
            start = int(self._prompts.computed[slot])
            left = int(self._prompts.length[slot]) - start
            length = min(left, room)
            if self._prompts.prompt_logprobs[slot] >= 0:
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
        prompts = self._prompts
        ends = np.cumsum(batch.lengths)
        wanted = prompts.prompt_logprobs[batch.slots] >= 0
        num_logits = np.where(wanted, batch.lengths, batch.finishes)  # at each chunk's end
        logit_ends = np.cumsum(num_logits)
        token_ids = prompts.ragged_tokens(batch.slots, batch.starts, batch.lengths)
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
        self._fill_draft(batch)
        prompts.computed[batch.slots] += batch.lengths

        prompt_logprobs = tuple(
            self._prompt_logprobs(batch, int(chunk), logits, int(logit_ends[chunk]))
            for chunk in np.flatnonzero(wanted)
        )
        done = batch.slots[batch.finishes]
        if len(done) == 0:
            # Whoever learns of this may give the blocks to another process.
            finish(self._target.device)
            return Prefilled(done, done, batch.slots, batch.lengths, None, prompt_logprobs)
        for _ in range(len(done)):
            self.inbox.popleft()
        rows = prompts.sampling.rows(done, prompts.length[done])
        if len(logits) > len(done):
            last_rows = torch.from_numpy(logit_ends[batch.finishes] - 1)
            logits = logits.index_select(0, last_rows.to(logits.device))
        next_ids = self._sample(logits, rows).cpu().numpy()
        each = np.arange(len(done))
        logprobs = emitted_logprobs(
            logits, each, next_ids[:, None], np.ones_like(each), prompts.logprobs[done]
        )
        return Prefilled(done, next_ids, batch.slots, batch.lengths, logprobs, prompt_logprobs)

    def _prompt_logprobs(
        self, batch: PrefillBatch, chunk: int, logits: Tensor, logit_end: int
    ) -> PromptChunkLogprobs:
        """Of the tokens that a chunk's rows decide: each row the next token of the prompt, so that
        a chunk's last row decides the first token of the next chunk."""
        prompts = self._prompts
        slot, length = int(batch.slots[chunk]), int(batch.lengths[chunk])
        start = int(batch.starts[chunk]) + 1
        ids = prompts.tokens[slot, start : min(start + length, int(prompts.length[slot]))]
        return prompt_chunk_logprobs(
            logits,
            logit_end - length,
            slot,
            start,
            ids.astype(np.int64),
            int(prompts.prompt_logprobs[slot]),
        )

    def _fill_draft(self, batch: PrefillBatch) -> None:
        wanted = self._prompts.fills_draft[batch.slots]
        if self._draft is None or not wanted.any():
            return
        slots, starts, lengths = batch.slots[wanted], batch.starts[wanted], batch.lengths[wanted]
        self._draft.forward(
            ForwardBatch.build(
                self._prompts.ragged_tokens(slots, starts, lengths),
                lengths,
                starts,
                slots,
                logit_rows=np.zeros(0, np.int64),
                device=self._draft.device,
            )
        )
