"""The verifier's own continuations of training text, on which the draft learns to follow it."""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench.models.llama import Attention, Layer, TrainingLlama, rotate
from bench.models.shapes import END_OF_TEXT_ID


class CachedDecoder:
    """Decodes rows of equal length with one preallocated key-value cache.

    The cache is ``[layers, 2, rows, kv_heads, length, head_dim]`` in the model's compute dtype.
    """

    def __init__(self, model: TrainingLlama, rows: int, length: int) -> None:
        shape = model.shape
        self._model = model
        self._cache = torch.zeros(
            (shape.num_layers, 2, rows, shape.num_kv_heads, length, shape.head_dim),
            dtype=model.compute_dtype,
        )
        self._filled = 0

    def _attend(self, attention: Attention, x: Tensor, number: int) -> Tensor:
        shape = self._model.shape
        rows, new, _ = x.shape
        start, end = self._filled, self._filled + new
        cos, sin = self._model.cos[start:end], self._model.sin[start:end]
        query = attention.q_proj(x).view(rows, new, shape.num_heads, shape.head_dim)
        key = attention.k_proj(x).view(rows, new, shape.num_kv_heads, shape.head_dim)
        value = attention.v_proj(x).view(rows, new, shape.num_kv_heads, shape.head_dim)
        keys, values = self._cache[number]
        keys[:, :, start:end] = rotate(key.transpose(1, 2), cos, sin)
        values[:, :, start:end] = value.transpose(1, 2)
        query = rotate(query.transpose(1, 2), cos, sin)
        group = shape.num_heads // shape.num_kv_heads
        if new == 1:
            # The heads of a group become rows of one product, so that keys are not repeated.
            query = query.view(rows, shape.num_kv_heads, group, shape.head_dim)
            mixed = F.scaled_dot_product_attention(query, keys[:, :, :end], values[:, :, :end])
            mixed = mixed.view(rows, shape.num_heads, 1, shape.head_dim)
        else:
            mixed = F.scaled_dot_product_attention(
                query,
                keys[:, :, :end].repeat_interleave(group, dim=1),
                values[:, :, :end].repeat_interleave(group, dim=1),
                is_causal=True,
            )
        return attention.o_proj(mixed.transpose(1, 2).reshape(rows, new, -1))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        """Append ``ids`` [rows, new] and return the last position's logits ``[rows, vocabulary]``.

        More than one new token may be given only to an empty cache.
        """
        decoder, dtype = self._model.model, self._model.compute_dtype
        x = decoder.embed_tokens(ids).float()
        for number, module in enumerate(decoder.layers):
            layer = cast(Layer, module)
            x = x + self._attend(layer.self_attn, layer.input_layernorm(x, dtype), number)
            x = x + layer.mlp(layer.post_attention_layernorm(x, dtype))
        self._filled += ids.shape[1]
        hidden = decoder.norm(x[:, -1], dtype)
        return F.linear(hidden, decoder.embed_tokens.weight.to(dtype)).float()


@torch.no_grad()
def continue_rows(
    model: TrainingLlama, prompts: Tensor, new_tokens: int, temperatures: Tensor, seed: int
) -> Tensor:
    """Prompts and their continuations, ``[rows, prompt + new_tokens]``.

    ``prompts`` is int64 ``[rows, prompt]``; a row whose temperature is 0 is continued greedily.
    ``<|endoftext|>`` does not end a row: what the verifier writes after it is continued too.
    """
    rows, length = prompts.shape
    decoder = CachedDecoder(_with_cast_weights(model), rows, length + new_tokens)
    generator = torch.Generator().manual_seed(seed)
    sampled = temperatures.nonzero().flatten()
    pieces = [prompts]
    ids = prompts
    for _ in range(new_tokens):
        logits = decoder.forward(ids)
        # Gumbel noise turns the greedy choice into a draw from the softmax.
        noise = torch.empty(len(sampled), logits.shape[1]).exponential_(generator=generator)
        logits[sampled] -= noise.log_() * temperatures[sampled, None]
        ids = logits.argmax(-1, keepdim=True)
        pieces.append(ids)
    return torch.cat(pieces, dim=1)


def _with_cast_weights(model: TrainingLlama) -> TrainingLlama:
    """A copy whose matrices already have the compute dtype, so that no step casts them again."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.to(model.compute_dtype)
    return copied


def sample_prompts(stream: NDArray[np.uint16], rows: int, length: int, seed: int) -> Tensor:
    """Windows of the training stream that hold no document boundary, int64 ``[rows, length]``."""
    generator = np.random.default_rng(seed)
    chosen: list[NDArray[np.uint16]] = []
    while len(chosen) < rows:
        start = int(generator.integers(len(stream) - length))
        window = stream[start : start + length]
        if not (window == END_OF_TEXT_ID).any():
            chosen.append(window)
    return torch.from_numpy(np.stack(chosen).astype(np.int64))
