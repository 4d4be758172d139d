"""Rejection sampling: a draft is kept as often as the verifier's law allows.

The rule, for one request in one cycle, with p the verifier's law at a position and q the law that
the draft drew from, both after temperature, top_k, top_p and min_p and renormalised:

    Go through the drafts from the left. Keep x_j if u * q_j(x_j) <= p_j(x_j), u uniform in (0, 1).
    At the first that is not kept, emit a token drawn from max(0, p_j - q_j) in its place and stop.
    If all k were kept, emit a token drawn from p_{k+1} as well.

The text has the verifier's law exactly, and no rule keeps more drafts: sum_x min(p(x), q(x)) of
them. See arXiv 2211.17192 and 2302.01318. What the cases come to:

- A greedy row keeps x if it is the argmax of p, and emits the argmax otherwise.
- A draft that is certain (no law) stands for q(x) = 1: it is kept with probability p(x), and the
  token in its place is drawn from p without x.
- A draft outside the support of p is never kept, and p = q keeps every draft.
- Where max(0, p - q) is zero everywhere, by rounding, the token is drawn from p.

The three draws at a position (draft, u, and the token of the verifier's own) have noise for a
purpose each, so none knows another. A position's noise decides nothing before that position, so
drafts that were dropped with it unused do not bias those that are made anew. The verifier's own
tokens (corrections apart) are those of ``sample``: without drafts the rule is plain sampling.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pdv_mp.speculation.acceptance import (
    Acceptance,
    DraftTokens,
    IntColumn,
    accept,
    count_kept,
    first_logits,
)
from pdv_mp.speculation.noise import Purpose, add_gumbel_, row_keys, uniforms
from pdv_mp.speculation.sampling import SamplingRows, processed_logprobs, sample


class RejectionSampling:
    """The rule that keeps most; a seed's text depends on how far the draft ran ahead."""

    def propose(self, logits: Tensor, rows: SamplingRows) -> DraftTokens:
        """Sampled with noise of the draft's own; a law unless all rows are greedy."""
        if rows.all_greedy:
            return DraftTokens(sample(logits, rows), None)
        scores = processed_logprobs(logits, rows)
        law = scores.exp()
        return DraftTokens(_draw_(scores, rows, Purpose.DRAFT), law)

    def judge(
        self,
        draft_ids: IntColumn,
        draft_lens: IntColumn,
        laws: Tensor | None,
        logits: Tensor,
        rows: SamplingRows,
    ) -> Acceptance:
        """Test every draft, then draw one token per request."""
        if rows.all_greedy or not draft_lens.any():
            return accept(draft_ids, draft_lens, sample(logits, rows).cpu().numpy())
        starts = first_logits(draft_ids, draft_lens, len(rows))
        # The drafts of all requests as one list.
        request, step = np.nonzero(np.arange(draft_ids.shape[1]) < draft_lens[:, None])
        tested = rows.select(starts[request] + step)
        ids = draft_ids[request, step].astype(np.int64)
        p = processed_logprobs(logits[_to_device(starts[request] + step, logits)], tested).exp_()
        p_of_ids = p.gather(1, _to_device(ids, p)[:, None])[:, 0]
        q_of_ids = torch.ones_like(p_of_ids) if laws is None else laws[request, step, ids]

        kept = np.zeros(draft_ids.shape, np.bool_)
        kept[request, step] = _keeps(p_of_ids, q_of_ids, tested).cpu().numpy()
        accepted = count_kept(kept)

        # A greedy row's correction is the argmax of p, as its bonus is: no residual is needed.
        own = starts + accepted
        corrected = (accepted < draft_lens) & (rows.temperature[own] > 0)
        next_ids = np.empty(len(own), np.int64)
        plain = own[~corrected]
        if len(plain):
            drawn = sample(logits[_to_device(plain, logits)], rows.select(plain))
            next_ids[~corrected] = drawn.cpu().numpy()
        if corrected.any():
            at = (np.cumsum(draft_lens) - draft_lens + accepted)[corrected]
            law = residual(
                p[_to_device(at, p)],
                None if laws is None else laws[request[at], step[at]],
                _to_device(ids[at], p),
            )
            drawn = _draw_(law.log_(), tested.select(at), Purpose.TOKEN)
            next_ids[corrected] = drawn.cpu().numpy()
        return Acceptance(accepted, next_ids)


def residual(p: Tensor, q: Tensor | None, ids: Tensor) -> Tensor:
    """What replaces drafts that were not kept: max(0, p - q), not normalised; float32 [R, V].

    ``p``, ``q`` float32 [R, V]. ``ids`` int64 [R]: the drafts, which without ``q`` were certain.
    A row that is zero everywhere is p's instead.
    """
    left = p.scatter(1, ids[:, None], 0.0) if q is None else (p - q).clamp_(min=0.0)
    return torch.where(left.any(dim=1, keepdim=True), left, p)


def _keeps(p_of_ids: Tensor, q_of_ids: Tensor, rows: SamplingRows) -> Tensor:
    """Whether u * q(x) <= p(x): bool [D]. A product, since q may underflow, in float64, where it
    does not. A greedy row's draft is certain, whatever its law says, and its p is 0 or 1."""
    q_of_ids = q_of_ids.double().masked_fill_(_to_device(rows.temperature == 0, p_of_ids), 1.0)
    u = _to_device(uniforms(rows.seeds, rows.positions, Purpose.ACCEPTANCE), p_of_ids)
    return (u * q_of_ids <= p_of_ids) & (p_of_ids > 0)


def _draw_(logprobs: Tensor, rows: SamplingRows, purpose: Purpose) -> Tensor:
    """A token per row with these log-probabilities, normalised or not, which it uses up."""
    keys = _to_device(row_keys(rows.seeds, rows.positions, purpose), logprobs)
    return add_gumbel_(logprobs, keys).max(dim=-1).indices


def _to_device(column: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    tensor = torch.from_numpy(column)
    if like.device.type == "cuda":
        # From memory that is not pinned a copy may wait for all that is queued.
        tensor = tensor.pin_memory()
    return tensor.to(like.device, non_blocking=True)
