"""The Llama decoder in the form in which it is trained: no cache, one causal window per row.

Parameter names are those of transformers' ``LlamaForCausalLM``, so that a state dict is exported
as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.shapes import ModelShape


class Linear(nn.Module):
    """Bias-free projection ``[..., in] -> [..., out]``, multiplied in the input's dtype."""

    def __init__(self, in_features: int, out_features: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features).normal_(0.0, std))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return (x * scale * self.weight).to(dtype)


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding (arXiv 2104.09864), each ``[length, head_dim]``."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * inverse[None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x`` [..., length, head_dim] by the tables [length, head_dim], halves paired."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x.float() * cos + turned * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query self-attention (arXiv 2305.13245)."""

    def __init__(self, shape: ModelShape, std: float, residual_std: float) -> None:
        super().__init__()
        self.shape = shape
        width = shape.num_heads * shape.head_dim
        kv_width = shape.num_kv_heads * shape.head_dim
        self.q_proj = Linear(shape.hidden_size, width, std)
        self.k_proj = Linear(shape.hidden_size, kv_width, std)
        self.v_proj = Linear(shape.hidden_size, kv_width, std)
        self.o_proj = Linear(width, shape.hidden_size, residual_std)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        shape = self.shape

        def heads(projected: Tensor, count: int) -> Tensor:
            return projected.view(batch, length, count, shape.head_dim).transpose(1, 2)

        group = shape.num_heads // shape.num_kv_heads
        query = rotate(heads(self.q_proj(x), shape.num_heads), cos, sin)
        key = rotate(heads(self.k_proj(x), shape.num_kv_heads), cos, sin)
        value = heads(self.v_proj(x), shape.num_kv_heads)
        key = key.repeat_interleave(group, dim=1)
        value = value.repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, shape: ModelShape, std: float, residual_std: float) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden_size, shape.intermediate_size, std)
        self.up_proj = Linear(shape.hidden_size, shape.intermediate_size, std)
        self.down_proj = Linear(shape.intermediate_size, shape.hidden_size, residual_std)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One pre-norm decoder layer; the residual stream stays in float32."""

    def __init__(self, shape: ModelShape, std: float, residual_std: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape, std, residual_std)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = FeedForward(shape, std, residual_std)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x, dtype), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x, dtype))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embedding, layers and final norm (the ``model`` part of ``LlamaForCausalLM``)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        std = 0.02
        residual_std = std / (2 * shape.num_layers) ** 0.5
        self.embed_tokens = nn.Embedding(shape.vocabulary_size, shape.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, 0.0, std)
        self.layers = nn.ModuleList(
            Layer(shape, std, residual_std) for _ in range(shape.num_layers)
        )
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, ids: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin, dtype)
        return self.norm(x, dtype)  # type: ignore[no-any-return]


class TrainingLlama(nn.Module):
    """A Llama language model with tied embeddings.

    ``compute_dtype`` is that of the matrix products; parameters, norms and the residual stream are
    float32.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: ModelShape, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape = shape
        self.compute_dtype = compute_dtype
        self.model = Decoder(shape)
        cos, sin = rotary_tables(shape.context_length, shape.head_dim, shape.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[batch, length, vocabulary]``, in the compute dtype, of ``[batch, length]``."""
        length = ids.shape[1]
        hidden = self.model(ids, self.cos[:length], self.sin[:length], self.compute_dtype)
        return F.linear(hidden, self.model.embed_tokens.weight.to(hidden.dtype))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean next-token cross-entropy in nats; both arguments ``[batch, length]``."""
        logits = self(ids).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
