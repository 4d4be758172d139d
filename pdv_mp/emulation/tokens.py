"""Tokens of an emulated pair: functions of a request's seed and the token's position alone.

The verifier's token at a position is drawn from all ids but those that end a text. The draft's is
the same one with the table's probability, else another one; which of the two is decided by a coin
of its own. So whatever drafts, verifies, batches or restarts, a seed gives the same text, and
drafts are kept independently of each other with the probability that the table says.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pdv_mp.speculation.acceptance import Acceptance, DraftTokens, IntColumn, accept
from pdv_mp.speculation.noise import Purpose, row_keys
from pdv_mp.speculation.sampling import SamplingRows


class EmulatedTokens:
    """An acceptance rule and a sampler; logits play no part. ``forbidden``: ids that never come."""

    def __init__(self, acceptance: float, vocab_size: int, forbidden: tuple[int, ...]) -> None:
        self._acceptance = acceptance
        allowed = np.setdiff1d(np.arange(vocab_size), np.array(forbidden, np.int64))
        if len(allowed) < 2:
            raise ValueError(f"{vocab_size} ids without {forbidden} leave no choice")
        self._allowed: npt.NDArray[np.int64] = allowed

    def _indices(self, rows: SamplingRows) -> npt.NDArray[np.int64]:
        return _number(rows, Purpose.TOKEN) % len(self._allowed)

    def sample(self, logits: Tensor, rows: SamplingRows) -> Tensor:
        """The verifier's token of each row, int64 [R]."""
        del logits
        return torch.from_numpy(self._allowed[self._indices(rows)])

    def propose(self, logits: Tensor, rows: SamplingRows) -> DraftTokens:
        """The draft's token of each row."""
        del logits
        return DraftTokens(torch.from_numpy(self.drafts(rows)), None)

    def drafts(self, rows: SamplingRows) -> npt.NDArray[np.int64]:
        """The draft's token of each row, int64 [R]."""
        indices, num_ids = self._indices(rows), len(self._allowed)
        others = (indices + 1 + _number(rows, Purpose.DRAFT) % (num_ids - 1)) % num_ids
        right = _number(rows, Purpose.ACCEPTANCE) < self._acceptance * 2.0**32
        return self._allowed[np.where(right, indices, others)]

    def judge(
        self,
        draft_ids: IntColumn,
        draft_lens: IntColumn,
        laws: Tensor | None,
        logits: Tensor,
        rows: SamplingRows,
    ) -> Acceptance:
        """Keep drafts up to the first that is not the verifier's token."""
        del laws
        return accept(draft_ids, draft_lens, self.sample(logits, rows).numpy())


def _number(rows: SamplingRows, purpose: Purpose) -> npt.NDArray[np.int64]:
    """A number from 0 to 2**32 - 1 for each row."""
    keys = row_keys(rows.seeds, rows.positions, purpose)
    return keys[:, 0].astype(np.uint32).astype(np.int64)
