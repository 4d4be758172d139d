"""Verify: one forward of the large model judges every proposal of the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pdv_mp.model.batch import ForwardBatch
from pdv_mp.resources.resources import ModelRunner
from pdv_mp.scheduling.columns import ragged_range
from pdv_mp.scheduling.counters import Counters
from pdv_mp.scheduling.sequences import SequenceTable
from pdv_mp.speculation.acceptance import Acceptance, AcceptanceRule
from pdv_mp.speculation.shared_gumbel import SharedGumbel
from pdv_mp.stages.logprobs import emitted_logprobs
from pdv_mp.stages.messages import Column, Proposal, Verdict, known


class VerifyStage:
    """Runs the verifier over every drafted position and lets the acceptance rule judge."""

    name = "verify"

    def __init__(
        self,
        table: SequenceTable,
        target: ModelRunner,
        rule: AcceptanceRule,
        counters: Counters,
    ) -> None:
        self._table = table
        self._target = target
        self._rule = rule
        self._counters = counters
        self.inbox: list[Proposal] = []

    def put(self, proposal: Proposal) -> None:
        """Take over the slots of a proposal until their verdict is returned."""
        self.inbox.append(proposal)

    def form(self) -> Proposal | None:
        """All that is in the inbox as one proposal, slots ascending; stale entries are dropped."""
        if not self.inbox:
            return None
        proposals, self.inbox = self.inbox, []
        merged = _merge(proposals)
        fresh = self._table.committed[merged.slots] == merged.base
        if not fresh.all():
            merged = known(merged)
            self._counters.stale_proposals += int((~fresh).sum())
            merged = _select(merged, np.flatnonzero(fresh))
        return merged if len(merged.slots) else None

    def run(self, proposal: Proposal) -> Verdict:
        """One forward over ``lengths[b] + 1`` rows per slot: the last committed token and the
        drafts after it, at positions ``base - 1 .. base - 1 + lengths``."""
        table = self._table
        if not np.array_equal(table.target_len[proposal.slots], proposal.base - 1):
            raise RuntimeError("the verifier's cache does not end at the last committed token")
        verdict = self._run_recorded(proposal)
        if verdict is not None:
            return verdict
        proposal = known(proposal)
        lengths = proposal.lengths + 1
        token_ids = table.tokens[proposal.slots, proposal.base - 1].astype(np.int64)
        if proposal.ids.shape[1]:
            rows = np.concatenate([token_ids[:, None], proposal.ids], axis=1)
            token_ids = rows[np.arange(rows.shape[1]) < lengths[:, None]]
        batch = ForwardBatch.build(
            token_ids,
            lengths,
            proposal.base - 1,
            proposal.slots,
            logit_rows=None,
            device=self._target.device,
        )
        self._counters.verify_forwards += 1
        table.target_len[proposal.slots] += lengths
        outcome = self._verify_at_once(batch)
        if outcome is not None:
            return Verdict(proposal, outcome.accepted, outcome.next_ids)
        logits = self._target.forward(batch)
        wanted = table.sampling.rows(batch.row_slots, batch.row_positions + 1)
        outcome = self._rule.judge(proposal.ids, proposal.lengths, proposal.laws, logits, wanted)
        verdict = Verdict(proposal, outcome.accepted, outcome.next_ids)
        return self._with_logprobs(verdict, logits, np.cumsum(lengths) - lengths)

    def _verify_at_once(self, batch: ForwardBatch) -> Acceptance | None:
        """The judgement where the verifier makes it itself and nobody wants to see its logits;
        None elsewhere."""
        target, table = self._target, self._table
        if target.verifier is None or not isinstance(self._rule, SharedGumbel):
            return None
        if not table.sampling.all_greedy(batch.slots) or self._wants_logprobs(batch.slots):
            return None
        return target.verifier.verify(batch, target.cache, target.vocab_size)

    def _wants_logprobs(self, slots: Column) -> bool:
        return bool((self._table.logprobs[slots] >= 0).any())

    def _run_recorded(self, proposal: Proposal) -> Verdict | None:
        """The forward and the judgement as one replay; None where nothing such is recorded."""
        steps, table = self._target.steps, self._table
        if steps is None or not isinstance(self._rule, SharedGumbel):
            return None
        slots, base, lengths = proposal.slots, proposal.base, proposal.lengths + 1
        judged = steps.verify(
            table.tokens[slots, base - 1].astype(np.int64),
            proposal.ids if proposal.pending is None else proposal.pending.device,
            proposal.lengths,
            slots,
            base,
            table.sampling.rows(np.repeat(slots, lengths), ragged_range(base, lengths)),
        )
        if judged is None:
            return None
        self._counters.verify_forwards += 1
        table.target_len[slots] += lengths
        verdict = Verdict(known(proposal), judged.accepted, judged.next_ids)
        return self._with_logprobs(verdict, judged.logits, judged.first_rows)

    def _with_logprobs(self, verdict: Verdict, logits: Tensor, first_rows: Column) -> Verdict:
        """With log-probabilities where some request wants them; ``first_rows`` [B]: where each
        request's logits begin."""
        if not self._wants_logprobs(verdict.proposal.slots):
            return verdict
        proposal = verdict.proposal
        emitted = np.pad(proposal.ids, ((0, 0), (0, 1)))
        emitted[np.arange(len(emitted)), verdict.accepted] = verdict.next_ids
        logprobs = emitted_logprobs(
            logits,
            first_rows,
            emitted,
            verdict.accepted + 1,
            self._table.logprobs[proposal.slots],
        )
        return replace(verdict, logprobs=logprobs)

    def commit(self, verdict: Verdict) -> None:
        """Forget the rows of rejected drafts; a roll-back is a change of length, nothing moves."""
        proposal = verdict.proposal
        self._table.target_len[proposal.slots] -= proposal.lengths - verdict.accepted


def _merge(proposals: list[Proposal]) -> Proposal:
    if len(proposals) == 1:
        return proposals[0]
    proposals = [known(proposal) for proposal in proposals]
    width = max(proposal.ids.shape[1] for proposal in proposals)
    slots = np.concatenate([proposal.slots for proposal in proposals])
    ids = np.full((len(slots), width), -1, np.int64)
    row = 0
    for proposal in proposals:
        ids[row : row + len(proposal.slots), : proposal.ids.shape[1]] = proposal.ids
        row += len(proposal.slots)
    base = np.concatenate([proposal.base for proposal in proposals])
    lengths = np.concatenate([proposal.lengths for proposal in proposals])
    laws = _merge_laws(proposals, width)
    return _select(Proposal(slots, base, lengths, ids, laws), np.argsort(slots, kind="stable"))


def _merge_laws(proposals: list[Proposal], width: int) -> Tensor | None:
    """The laws of proposals one after the other, [B, width, V]; certain drafts become one-hot."""
    given = [proposal.laws for proposal in proposals if proposal.laws is not None]
    if not given:
        return None
    rows = sum(len(proposal.slots) for proposal in proposals)
    merged = given[0].new_empty((rows, width, given[0].shape[2]))
    row = 0
    for proposal in proposals:
        part = merged[row : row + len(proposal.slots), : proposal.ids.shape[1]]
        if proposal.laws is not None:
            part.copy_(proposal.laws)
        else:
            ids = torch.from_numpy(proposal.ids.clip(min=0)).to(part.device)
            part.zero_().scatter_(2, ids[:, :, None], 1.0)
        row += len(proposal.slots)
    return merged


def _select(proposal: Proposal, rows: np.ndarray) -> Proposal:
    return Proposal(
        proposal.slots[rows],
        proposal.base[rows],
        proposal.lengths[rows],
        proposal.ids[rows],
        None if proposal.laws is None else proposal.laws[torch.from_numpy(rows)],
    )
