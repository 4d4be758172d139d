"""How the tensors of a Hugging Face checkpoint map onto the fused ones of weights.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.errors import ModelError

if TYPE_CHECKING:
    import torch

    from pdv_mp.model.weights import Weights


def is_derived(config: ModelConfig, name: str) -> bool:
    """Tensors that older checkpoints carry and that follow from others."""
    return name.endswith("rotary_emb.inv_freq") or (
        name == "lm_head.weight" and config.tie_word_embeddings
    )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tensor of the checkpoint goes: rows of a fused tensor, after a rearrangement."""

    target: str
    shape: tuple[int, ...]
    first_row: int = 0
    arrange: Callable[[torch.Tensor], torch.Tensor] | None = None

    def store(self, weights: Weights, name: str, value: torch.Tensor) -> None:
        """Copy and convert a tensor of the checkpoint; ModelError for a wrong shape or type."""
        if tuple(value.shape) != self.shape:
            raise ModelError(f"{name} has shape {list(value.shape)}, expected {list(self.shape)}.")
        if not value.is_floating_point() or value.element_size() < 2:
            raise ModelError(f"{name} is {value.dtype}; quantised weights cannot be read.")
        arranged = value if self.arrange is None else self.arrange(value)
        target = weights[self.target]
        target[self.first_row : self.first_row + arranged.shape[0]].copy_(arranged)


def placements(config: ModelConfig) -> dict[str, Placement]:
    """The checkpoint's tensors by name; see weights.py for the order of heads and rows."""
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    group, half = config.group_size, config.head_dim // 2
    hidden, width = config.hidden_size, config.intermediate_size
    query, kv = heads * dim, kv_heads * dim

    def arrange_query(value: torch.Tensor) -> torch.Tensor:
        rest = value.shape[1:]
        split = value.reshape(kv_heads, group, 2, half, *rest)
        return split.transpose(0, 1).transpose(2, 3).reshape(query, *rest)

    def arrange_key(value: torch.Tensor) -> torch.Tensor:
        rest = value.shape[1:]
        return value.reshape(kv_heads, 2, half, *rest).transpose(1, 2).reshape(kv, *rest)

    def arrange_output(value: torch.Tensor) -> torch.Tensor:
        return value.reshape(hidden, kv_heads, group, dim).transpose(1, 2).reshape(hidden, query)

    def arrange_norm(count: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda value: value.reshape(2, half).t().reshape(1, dim).expand(count, dim)

    result = {
        "model.embed_tokens.weight": Placement("embed_tokens", (config.vocab_size, hidden)),
        "model.norm.weight": Placement("norm", (hidden,)),
    }
    if not config.tie_word_embeddings:
        result["lm_head.weight"] = Placement("lm_head", (config.vocab_size, hidden))
    for layer in range(config.num_layers):
        source, target = f"model.layers.{layer}.", f"layers.{layer}."
        attention, mlp = source + "self_attn.", source + "mlp."
        result[source + "input_layernorm.weight"] = Placement(target + "input_norm", (hidden,))
        result[source + "post_attention_layernorm.weight"] = Placement(
            target + "mlp_norm", (hidden,)
        )
        kinds: list[tuple[str, str, tuple[int, ...]]] = [("weight", "proj", (hidden,))]
        if config.attention_bias:
            kinds.append(("bias", "bias", ()))
        for suffix, fused, rest in kinds:
            qkv = f"{target}qkv_{fused}"
            result[f"{attention}q_proj.{suffix}"] = Placement(qkv, (query, *rest), 0, arrange_query)
            result[f"{attention}k_proj.{suffix}"] = Placement(qkv, (kv, *rest), query, arrange_key)
            result[f"{attention}v_proj.{suffix}"] = Placement(qkv, (kv, *rest), query + kv)
        result[attention + "o_proj.weight"] = Placement(
            target + "o_proj", (hidden, query), 0, arrange_output
        )
        if config.attention_output_bias:
            result[attention + "o_proj.bias"] = Placement(target + "o_bias", (hidden,))
        if config.qk_norm:
            qk_norm = target + "qk_norm"
            result[attention + "q_norm.weight"] = Placement(qk_norm, (dim,), 0, arrange_norm(heads))
            result[attention + "k_norm.weight"] = Placement(
                qk_norm, (dim,), heads, arrange_norm(kv_heads)
            )
        kinds = [("weight", "proj", (hidden,))]
        if config.mlp_bias:
            kinds.append(("bias", "bias", ()))
            result[mlp + "down_proj.bias"] = Placement(target + "down_bias", (hidden,))
        for suffix, fused, rest in kinds:
            gate_up = f"{target}gate_up_{fused}"
            result[f"{mlp}gate_proj.{suffix}"] = Placement(gate_up, (width, *rest))
            result[f"{mlp}up_proj.{suffix}"] = Placement(gate_up, (width, *rest), width)
        result[mlp + "down_proj.weight"] = Placement(target + "down_proj", (hidden, width))
    return result
