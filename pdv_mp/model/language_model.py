"""What the engine asks of a model in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from pdv_mp.memory.attention_plan import AttentionPlan
    from pdv_mp.memory.kv_cache import KVCache
    from pdv_mp.model.batch import ForwardBatch


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
