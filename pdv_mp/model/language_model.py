"""What the engine asks of a model in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pdv_mp.memory.attention_plan import AttentionPlan
    from pdv_mp.memory.kv_cache import KVCache
    from pdv_mp.model.batch import ForwardBatch
    from pdv_mp.speculation.acceptance import Acceptance
    from pdv_mp.speculation.sampling import SamplingRows


class LanguageModel(Protocol):
    """Computes logits for ragged batches, with keys and values in a KVCache.

    `uses_plan`: whether it needs the cache's plan of a batch, which is then best made once.
    """

    uses_plan: bool

    def forward(
        self, batch: ForwardBatch, cache: KVCache, plan: AttentionPlan | None = None
    ) -> torch.Tensor:
        """Write the keys and values of all N rows and return the logits of the wanted ones.

        `plan`: the cache's plan of this batch where there is one already; otherwise it is made.
        Returns float32 [len(batch.logit_rows), vocab_size], or [N, vocab_size] when logit_rows is
        None. Raises ValueError for a slot or position that the cache does not have.
        """
        ...


@runtime_checkable
class GreedyVerifier(Protocol):
    """A model that judges drafts in the call that computes their logits."""

    def verify(self, batch: ForwardBatch, cache: KVCache, vocab_size: int) -> Acceptance:
        """As :meth:`LanguageModel.forward` of a batch that wants all rows, and in which the tokens
        of a sequence after its first are drafts: those that hold are the best ones of the first
        `vocab_size` ids, of equal ones the lowest, of the row before each. Raises ValueError for a
        slot or position that the cache does not have."""
        ...


@runtime_checkable
class Drafter(Protocol):
    """A model that drafts several tokens in one call."""

    def can_draft(self, rows: SamplingRows) -> bool:
        """Whether it chooses tokens as these parameters want it."""
        ...

    def draft(
        self,
        batch: ForwardBatch,
        cache: KVCache,
        lengths: NDArray[np.int64],
        vocab_size: int,
        rows: SamplingRows,
    ) -> NDArray[np.int64]:
        """The tokens that follow each sequence. Greedily that is, of equal scores, the lowest id.

        `batch` wants one row of logits for each of its B sequences. `lengths` [B]: tokens wanted,
        at least 1 each, of the first `vocab_size` ids. `rows` [B]: the parameters of each
        sequence's first token, for which :meth:`can_draft` holds. Returns [B, max(lengths)], -1
        beyond a sequence's length. The rows of all tokens but the last of each sequence are
        written, too. Raises ValueError for a slot or position that the cache does not have.
        """
        ...
