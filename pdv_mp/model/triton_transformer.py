"""The forward pass of the Llama family for a GPU: products by cuBLAS, the rest by Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pdv_mp.memory.triton_cache import PagedPlan, TritonKVCache
from pdv_mp.model.kernels.pointwise import rms_norm, rotate_and_store, silu_times
from pdv_mp.model.linear import PlainLinear
from pdv_mp.model.rope import rotation_table

if TYPE_CHECKING:
    from pdv_mp.memory.attention_plan import AttentionPlan
    from pdv_mp.memory.kv_cache import KVCache
    from pdv_mp.model.architecture import ModelConfig
    from pdv_mp.model.batch import ForwardBatch
    from pdv_mp.model.weights import Weights


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: torch.Tensor
    qkv: PlainLinear
    qk_norm: torch.Tensor | None
    o: PlainLinear
    mlp_norm: torch.Tensor
    gate_up: PlainLinear
    down: PlainLinear


class TritonTransformer:
    """As :class:`~pdv_mp.model.transformer.Transformer`, with a :class:`TritonKVCache`.

    Ten kernels a layer, none of which depends on values of the batch.
    """

    uses_plan = True

    def __init__(self, config: ModelConfig, weights: Weights, max_model_len: int) -> None:
        """Positions 0 .. max_model_len - 1 may occur; ModelError if the model cannot go so far."""
        config.check_max_model_len(max_model_len)
        self.config = config
        self.max_model_len = max_model_len
        self._eps = config.rms_norm_eps
        self._query_width = config.num_heads * config.head_dim
        table = rotation_table(config.rope, config.head_dim, max_model_len, weights.device)
        self._rotations = torch.view_as_real(table).squeeze(1).contiguous()
        self._embedding = weights["embed_tokens"]
        head = self._embedding if config.tie_word_embeddings else weights["lm_head"]
        self._lm_head = head.t()
        self._norm = weights["norm"]

        def linear(name: str, bias: str) -> PlainLinear:
            return PlainLinear(weights[name], weights.get(bias))

        self._layers = []
        for index in range(config.num_layers):
            name = f"layers.{index}."
            self._layers.append(
                _Layer(
                    input_norm=weights[name + "input_norm"],
                    qkv=linear(name + "qkv_proj", name + "qkv_bias"),
                    qk_norm=weights.get(name + "qk_norm"),
                    o=linear(name + "o_proj", name + "o_bias"),
                    mlp_norm=weights[name + "mlp_norm"],
                    gate_up=linear(name + "gate_up_proj", name + "gate_up_bias"),
                    down=linear(name + "down_proj", name + "down_bias"),
                )
            )

    @torch.inference_mode()
    def forward(
        self, batch: ForwardBatch, cache: KVCache, plan: AttentionPlan | None = None
    ) -> torch.Tensor:
        """As ``Transformer.forward``. Raises TypeError for a cache of another kind."""
        if not isinstance(cache, TritonKVCache):
            raise TypeError(f"a {type(cache).__name__} is no cache for Triton's kernels")
        plan = cache.plan(batch) if plan is None else plan
        if not isinstance(plan, PagedPlan):
            raise TypeError(f"a {type(plan).__name__} is not a plan of this cache")
        hidden = F.embedding(batch.token_ids, self._embedding)
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(rms_norm(hidden, layer.input_norm, self._eps))
            rotate_and_store(
                qkv,
                self._rotations,
                plan.positions,
                plan.places,
                cache.layer(index),
                layer.qk_norm,
                self._eps,
            )
            if index == last and batch.logit_rows is not None and not len(batch.logit_rows):
                return hidden.new_empty((0, self.config.vocab_size), dtype=torch.float32)
            attended = cache.attend(index, qkv[:, : self._query_width], plan)
            if index == last and batch.logit_rows is not None:
                # The last layer's output matters only where logits are wanted.
                attended = attended.index_select(0, batch.logit_rows)
                hidden = hidden.index_select(0, batch.logit_rows)
            layer.o.add_to(hidden, attended)
            gate_up = layer.gate_up(rms_norm(hidden, layer.mlp_norm, self._eps))
            layer.down.add_to(hidden, silu_times(gate_up))
        return torch.mm(rms_norm(hidden, self._norm, self._eps), self._lm_head).float()
