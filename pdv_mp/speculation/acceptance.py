"""Which draft tokens are kept, decided on token ids alone (shared-Gumbel acceptance).

The rule, for one request in one cycle:

    The draft proposed x_1 .. x_k. The verifier ran over the committed text and all of them, and
    sampled y_1 .. y_{k+1} at the same positions with the same noise: y_j is what the verifier alone
    would emit if everything before position j were committed.

    Go through the drafts from the left. While x_j == y_j, keep x_j.
    At the first x_j != y_j, emit y_j instead (the correction) and stop: the later y were computed
    behind a token that is not in the text.
    If all k were kept, emit y_{k+1} as well (the bonus).

So a cycle emits ``accepted + 1`` tokens, and every one of them is the verifier's own y: the draft
decides only how many of them one verifier pass yields. Greedy rows need no rule of their own, since
there y is the argmax. See "Drafter-invariant speculative decoding", arXiv 2408.07978.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

IntColumn = npt.NDArray[np.signedinteger[Any]]


class Acceptance(NamedTuple):
    """What one cycle decided, a row per request.

    ``accepted`` [B] int64: draft tokens kept, 0 to the row's draft length. ``next_ids`` [B] int64:
    the correction or, where all drafts were kept, the bonus; it follows the accepted tokens.
    """

    accepted: npt.NDArray[np.int64]
    next_ids: npt.NDArray[np.int64]


def accept(draft_ids: IntColumn, draft_lens: IntColumn, verifier_ids: IntColumn) -> Acceptance:
    """Compare drafts with the verifier's own samples, for a whole batch at once.

    ``draft_ids`` [B, K]: padded on the right with anything. ``draft_lens`` [B]: drafts per request,
    0 to K. ``verifier_ids`` [sum(draft_lens + 1)]: the verifier's samples, request after request,
    each with one row per draft and one more for the bonus.

    Raises ValueError if the shapes do not belong together.
    """
    lens = np.asarray(draft_lens, np.int64)
    batch, width = draft_ids.shape
    if lens.shape != (batch,) or np.any(lens < 0) or np.any(lens > width):
        raise ValueError(f"draft_lens {lens} do not fit draft_ids of shape {draft_ids.shape}")
    ends = np.cumsum(lens + 1)
    num_rows = int(lens.sum()) + batch
    if verifier_ids.shape != (num_rows,):
        raise ValueError(
            f"verifier_ids has shape {verifier_ids.shape}, not ({num_rows},): one row per draft "
            "and one more per request"
        )
    starts = ends - lens - 1
    step = np.arange(width)
    drafted = step < lens[:, None]
    rows = np.where(drafted, starts[:, None] + step, 0)
    same = drafted & (draft_ids == verifier_ids[rows]) if num_rows else drafted
    accepted = np.logical_and.accumulate(same, axis=1).sum(axis=1, dtype=np.int64)
    return Acceptance(accepted, verifier_ids[starts + accepted].astype(np.int64))
