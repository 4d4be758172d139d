"""Shared-Gumbel acceptance: a draft is kept if it is the very token that the verifier draws.

The rule, for one request in one cycle:

    The draft proposed x_1 .. x_k. The verifier sampled y_1 .. y_{k+1} at the same positions with
    the same noise: y_j is what the verifier alone would emit if everything before position j were
    committed.

    Go through the drafts from the left. While x_j == y_j, keep x_j.
    At the first x_j != y_j, emit y_j instead (the correction) and stop: the later y were computed
    behind a token that is not in the text.
    If all k were kept, emit y_{k+1} as well (the bonus).

Every token of the text is the verifier's own y: the draft decides only how many of them one
verifier pass yields. Greedy rows need no rule of their own, since there y is the argmax. See
"Drafter-invariant speculative decoding", arXiv 2408.07978.
"""

from __future__ import annotations

from torch import Tensor

from pdv_mp.speculation.acceptance import Acceptance, DraftTokens, IntColumn, accept
from pdv_mp.speculation.sampling import SamplingRows, sample


class SharedGumbel:
    """The default rule: a seed's text is the same with and without speculation."""

    def propose(self, logits: Tensor, rows: SamplingRows) -> DraftTokens:
        """Sampled with the noise that the verifier uses at the same positions."""
        return DraftTokens(sample(logits, rows), None)

    def judge(
        self,
        draft_ids: IntColumn,
        draft_lens: IntColumn,
        laws: Tensor | None,
        logits: Tensor,
        rows: SamplingRows,
    ) -> Acceptance:
        """Compare with the verifier's own samples; ``laws`` play no part."""
        del laws
        return accept(draft_ids, draft_lens, sample(logits, rows).cpu().numpy())
