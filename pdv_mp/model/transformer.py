"""The forward pass of the Llama family: Llama, Mistral, Qwen2, Qwen3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pdv_mp.model.rope import rotate, rotation_table

if TYPE_CHECKING:
    from pdv_mp.memory.attention_plan import AttentionPlan
    from pdv_mp.memory.kv_cache import KVCache
    from pdv_mp.model.architecture import ModelConfig
    from pdv_mp.model.batch import ForwardBatch
    from pdv_mp.model.weights import Weights


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer; matrices transposed to [in, out] as views."""

    input_norm: _Norm
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    qk_norm: _Norm | None
    o: torch.Tensor
    o_bias: torch.Tensor | None
    mlp_norm: _Norm
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


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

    def __init__(self, config: ModelConfig, weights: Weights, max_model_len: int) -> None:
        """Positions 0 .. max_model_len - 1 may occur; ModelError if the model cannot go so far."""
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
        self._embedding = weights["embed_tokens"]
        head = self._embedding if config.tie_word_embeddings else weights["lm_head"]
        self._lm_head = head.t()
        eps = config.rms_norm_eps
        self._norm = _Norm(weights["norm"], eps)
        self._layers = []
        for index in range(config.num_layers):
            name = f"layers.{index}."
            qk_norm = weights.get(name + "qk_norm")
            self._layers.append(
                _Layer(
                    input_norm=_Norm(weights[name + "input_norm"], eps),
                    qkv=weights[name + "qkv_proj"].t(),
                    qkv_bias=weights.get(name + "qkv_bias"),
                    qk_norm=None if qk_norm is None else _Norm(qk_norm, eps),
                    o=weights[name + "o_proj"].t(),
                    o_bias=weights.get(name + "o_bias"),
                    mlp_norm=_Norm(weights[name + "mlp_norm"], eps),
                    gate_up=weights[name + "gate_up_proj"].t(),
                    gate_up_bias=weights.get(name + "gate_up_bias"),
                    down=weights[name + "down_proj"].t(),
                    down_bias=weights.get(name + "down_bias"),
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
            _add_product(hidden, attended, layer.o, layer.o_bias)
            gate_up = _product(layer.mlp_norm(hidden), layer.gate_up, layer.gate_up_bias)
            activated = F.silu(gate_up[:, : self._width]).mul_(gate_up[:, self._width :])
            _add_product(hidden, activated, layer.down, layer.down_bias)
        return torch.mm(self._norm(hidden), self._lm_head).float()

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
        qkv = _product(layer.input_norm(hidden), layer.qkv, layer.qkv_bias)
        heads = qkv.view(len(qkv), -1, self._head_dim)
        rotated = heads[:, : self._num_rotated]
        if layer.qk_norm is not None:
            rotated.copy_(layer.qk_norm(rotated))
        rotate(rotated, rotations)
        cache.write(index, qkv[:, self._query_width :], plan)
        return qkv[:, : self._query_width]


def _product(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.mm(x, matrix) if bias is None else torch.addmm(bias, x, matrix)


def _add_product(
    target: torch.Tensor, x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """target += x @ matrix + bias, in place."""
    target.addmm_(x, matrix)
    if bias is not None:
        target.add_(bias)
