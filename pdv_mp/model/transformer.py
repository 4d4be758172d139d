"""The forward pass of the Llama family: Llama, Mistral, Qwen2, Qwen3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pdv_mp.model.linear import Linear, PlainLinear
from pdv_mp.model.linear import pack as pack_linear
from pdv_mp.model.rope import rotate, rotation_table

if TYPE_CHECKING:
    from pdv_mp.memory.attention_plan import AttentionPlan
    from pdv_mp.memory.kv_cache import KVCache
    from pdv_mp.model.architecture import ModelConfig
    from pdv_mp.model.batch import ForwardBatch
    from pdv_mp.model.weights import Weights


@dataclass(frozen=True, slots=True)
class _Layer:
    """What one layer computes with."""

    input_norm: _Norm
    qkv: Linear
    qk_norm: _Norm | None
    o: Linear
    mlp_norm: _Norm
    gate_up: Linear
    down: Linear


class _Norm:
    """Root mean square normalisation (arXiv 1910.07467) over the last dimension.

    In float32 on the CPU x / sqrt(|x|^2 + n * eps) * (sqrt(n) * weight) takes half the time of the
    built-in operator on a few rows.
    """

    __slots__ = ("_composed", "_eps", "_floor", "_scaled", "_size", "_weight")

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        size = weight.shape[-1]
        self._weight = weight
        self._size = (size,)
        self._eps = eps
        self._composed = weight.device.type == "cpu" and weight.dtype == torch.float32
        self._floor = torch.tensor(math.sqrt(size * eps))
        self._scaled = weight * math.sqrt(size) if self._composed else weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._composed:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return x.div(torch.hypot(length, self._floor)).mul_(self._scaled)
        return F.rms_norm(x, self._size, None, self._eps).mul_(self._weight)


class Transformer:
    """Computes logits for ragged batches, with keys and values in a KVCache.

    Activations have the weights' dtype, logits are float32. Nothing of a batch is kept.
    """

    uses_plan = True

    def __init__(
        self, config: ModelConfig, weights: Weights, max_model_len: int, *, pack: bool = False
    ) -> None:
        """Positions 0 .. max_model_len - 1 may occur; ModelError if the model cannot go so far.

        `pack`: keep copies of the matrices in the form that the CPU's kernels read, and nothing of
        `weights`; see :func:`~pdv_mp.model.linear.can_pack`.
        """
        config.check_max_model_len(max_model_len)
        self.config = config
        self.max_model_len = max_model_len
        self._head_dim = config.head_dim
        self._num_rotated = config.num_heads + config.num_kv_heads
        self._query_width = config.num_heads * config.head_dim
        self._width = config.intermediate_size
        self._rotations = rotation_table(
            config.rope, config.head_dim, max_model_len, weights.device
        )
        make = pack_linear if pack else PlainLinear

        def linear(name: str) -> Linear:
            return make(weights[name + "_proj"], weights.get(name + "_bias"))

        def norm(name: str) -> _Norm:
            weight = weights[name]
            return _Norm(weight.clone() if pack else weight, config.rms_norm_eps)

        embedding = weights["embed_tokens"]
        self._lm_head: Linear = make(
            embedding if config.tie_word_embeddings else weights["lm_head"]
        )
        self._embedding = embedding.clone() if pack else embedding
        self._norm = norm("norm")
        self._layers = []
        for index in range(config.num_layers):
            name = f"layers.{index}."
            self._layers.append(
                _Layer(
                    input_norm=norm(name + "input_norm"),
                    qkv=linear(name + "qkv"),
                    qk_norm=norm(name + "qk_norm") if config.qk_norm else None,
                    o=linear(name + "o"),
                    mlp_norm=norm(name + "mlp_norm"),
                    gate_up=linear(name + "gate_up"),
                    down=linear(name + "down"),
                )
            )

    @torch.inference_mode()
    def forward(
        self, batch: ForwardBatch, cache: KVCache, plan: AttentionPlan | None = None
    ) -> torch.Tensor:
        """Write the keys and values of all N rows and return the logits of the wanted ones.

        `plan`: the cache's plan of this batch where there is one already; otherwise it is made.
        Returns float32 [len(batch.logit_rows), vocab_size], or [N, vocab_size] when logit_rows is
        None. Raises ValueError for a slot or position that the cache does not have.
        """
        plan = cache.plan(batch) if plan is None else plan
        rotations = self._rotations.index_select(0, batch.positions)
        hidden = F.embedding(batch.token_ids, self._embedding)
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            query = self._write(index, layer, hidden, rotations, plan, cache)
            if index == last and batch.logit_rows is not None:
                # The last layer's output matters only where logits are wanted.
                if not len(batch.logit_rows):
                    return hidden.new_empty((0, self.config.vocab_size), dtype=torch.float32)
                attended = cache.attend(index, query, plan).index_select(0, batch.logit_rows)
                hidden = hidden.index_select(0, batch.logit_rows)
            else:
                attended = cache.attend(index, query, plan)
            layer.o.add_to(hidden, attended)
            gate_up = layer.gate_up(layer.mlp_norm(hidden))
            activated = F.silu(gate_up[:, : self._width]).mul_(gate_up[:, self._width :])
            layer.down.add_to(hidden, activated)
        return self._lm_head(self._norm(hidden)).float()

    def _write(
        self,
        index: int,
        layer: _Layer,
        hidden: torch.Tensor,
        rotations: torch.Tensor,
        plan: AttentionPlan,
        cache: KVCache,
    ) -> torch.Tensor:
        """Project, rotate and store a layer's keys and values; returns the queries [N, width]."""
        qkv = layer.qkv(layer.input_norm(hidden))
        heads = qkv.view(len(qkv), -1, self._head_dim)
        rotated = heads[:, : self._num_rotated]
        if layer.qk_norm is not None:
            rotated.copy_(layer.qk_norm(rotated))
        rotate(rotated, rotations)
        cache.write(index, qkv[:, self._query_width :], plan)
        return qkv[:, : self._query_width]
