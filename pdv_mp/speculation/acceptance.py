"""What decides which draft tokens are kept: the interface of the rules, and what they share.

In one cycle the draft proposes x_1 .. x_k, the verifier runs over the committed text and all of
them, and a rule goes through them from the left: it keeps x_j or puts a token of the verifier's in
its place and stops. If all k are kept, the verifier adds one of its own. So a cycle emits
``accepted + 1`` tokens. ``shared_gumbel`` and ``rejection`` in this package are two such rules.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pdv_mp.speculation.sampling import SamplingRows

IntColumn = npt.NDArray[np.signedinteger[Any]]


class Acceptance(NamedTuple):
    """What one cycle decided, a row per request.

    ``accepted`` [B] int64: draft tokens kept, 0 to the row's draft length. ``next_ids`` [B] int64:
    the correction or, where all drafts were kept, the bonus; it follows the accepted tokens.
    """

    accepted: npt.NDArray[np.int64]
    next_ids: npt.NDArray[np.int64]


class DraftTokens(NamedTuple):
    """One draft token per row.

    ``ids`` int64 [R], ``law`` float32 [R, V]: the probabilities that they were drawn from. No law
    where the rule does not look at it; rows of greedy requests hold anything.
    """

    ids: Tensor
    law: Tensor | None


class AcceptanceRule(Protocol):
    """How the draft chooses its tokens, and how the verifier judges them.

    The first token of a request, which no draft proposes, is a plain ``sampling.sample``.
    """

    def propose(self, logits: Tensor, rows: SamplingRows) -> DraftTokens:
        """A draft token per row of the draft's logits: float32 [R, V]."""

    def judge(
        self,
        draft_ids: IntColumn,
        draft_lens: IntColumn,
        laws: Tensor | None,
        logits: Tensor,
        rows: SamplingRows,
    ) -> Acceptance:
        """Which drafts hold, and what follows them.

        ``draft_ids`` [B, K]: padded on the right with anything. ``draft_lens`` [B]: drafts per
        request, 0 to K. ``laws`` float32 [B, K, V]: the probabilities that each draft was drawn
        from; None if every draft was certain. Padding and rows of greedy requests hold anything.
        ``logits`` float32 [sum(draft_lens + 1), V]: the verifier's, request after request, each
        with one row per draft and one more; ``rows``: their parameters and positions.

        Raises ValueError if the shapes do not belong together.
        """


class DraftLaws:
    """Collects the laws of a batch's drafts step by step."""

    def __init__(self, batch: int, width: int) -> None:
        self._shape = (batch, width)
        self.tensor: Tensor | None = None
        """float32 [B, K, V], with anything where no law was put; None if there is none at all."""

    def put(self, rows: npt.NDArray[np.int64], step: int, law: Tensor | None) -> None:
        """``law`` [len(rows), V] of the drafts of these rows of the batch at this step."""
        if law is None:
            return
        if self.tensor is None:
            self.tensor = law.new_empty((*self._shape, law.shape[1]))
        if len(rows) == len(self.tensor):
            self.tensor[:, step] = law
        else:
            self.tensor[rows, step] = law


def count_kept(kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Drafts of each row before its first False: int64 [B] of bool [B, K], False in the padding."""
    counts: npt.NDArray[np.int64] = np.logical_and.accumulate(kept, axis=1).sum(axis=1, dtype="i8")
    return counts


def first_logits(
    draft_ids: IntColumn, draft_lens: IntColumn, num_rows: int
) -> npt.NDArray[np.int64]:
    """Where each request's rows of the verifier begin: int64 [B].

    Raises ValueError if ``num_rows`` rows are not one per draft and one more per request.
    """
    lens = np.asarray(draft_lens, np.int64)
    batch, width = draft_ids.shape
    counts = lens.tolist()
    if lens.shape != (batch,) or min(counts, default=0) < 0 or max(counts, default=0) > width:
        raise ValueError(f"draft_lens {lens} do not fit draft_ids of shape {draft_ids.shape}")
    if num_rows != sum(counts) + batch:
        raise ValueError(
            f"{num_rows} rows of the verifier for {sum(counts)} drafts of {batch} requests: there "
            "must be one per draft and one more per request"
        )
    rows = lens + 1
    starts: npt.NDArray[np.int64] = np.cumsum(rows) - rows
    return starts


def accept(draft_ids: IntColumn, draft_lens: IntColumn, verifier_ids: IntColumn) -> Acceptance:
    """Compare drafts with the verifier's own samples, for a whole batch at once.

    ``draft_ids`` [B, K]: padded on the right with anything. ``draft_lens`` [B]: drafts per request,
    0 to K. ``verifier_ids`` [sum(draft_lens + 1)]: the verifier's samples, request after request,
    each with one row per draft and one more for the bonus.

    Raises ValueError if the shapes do not belong together.
    """
    starts = first_logits(draft_ids, draft_lens, len(verifier_ids))
    step = np.arange(draft_ids.shape[1])
    rows = np.minimum(starts[:, None] + step, len(verifier_ids) - 1)  # where it is padding
    same = (draft_ids == verifier_ids[rows]) & (step < draft_lens[:, None])
    accepted = count_kept(same)
    return Acceptance(accepted, verifier_ids[starts + accepted].astype(np.int64, copy=False))
