"""A model's matrices in the order in which our compiled kernels read them.

A panel holds a few outputs of a matrix, input after input, so that a kernel reads memory in one
run and keeps the sums of a panel in registers. The outputs of gate and up alternate, vector by
vector, so that the product of the two is at hand when a panel is done. The weights of a norm are
multiplied into the matrix behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from pdv_mp.model.weights import Manifest, Weights

if TYPE_CHECKING:
    from pdv_mp.model.architecture import ModelConfig


def panel_manifest(config: ModelConfig, lanes: int) -> Manifest:
    """Where everything lies for kernels with vectors of ``lanes`` floats: float32, the matrices
    [panels, inputs, 2 * lanes], biases padded to whole panels."""
    return Manifest.of(_shapes(config, lanes), torch.float32)


def _shapes(config: ModelConfig, lanes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, width = config.hidden_size, config.intermediate_size
    query = config.num_heads * config.head_dim
    fused = query + 2 * config.num_kv_heads * config.head_dim
    panel = 2 * lanes

    def matrix(name: str, outputs: int, inputs: int, bias: bool) -> Iterator[_Named]:
        panels = -(-outputs // panel)
        yield f"{name}_proj", (panels, inputs, panel)
        if bias:
            yield f"{name}_bias", (panels * panel,)

    yield "embed_tokens", (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}."
        yield from matrix(prefix + "qkv", fused, hidden, config.attention_bias)
        if config.qk_norm:
            yield prefix + "qk_norm", (config.num_heads + config.num_kv_heads, config.head_dim)
        yield from matrix(prefix + "o", hidden, query, config.attention_output_bias)
        yield from matrix(prefix + "gate_up", 2 * width, hidden, config.mlp_bias)
        yield from matrix(prefix + "down", hidden, width, config.mlp_bias)
    yield from matrix("lm_head", config.vocab_size, hidden, False)


_Named = tuple[str, tuple[int, ...]]


def fill_panels(config: ModelConfig, weights: Weights, panels: Weights, lanes: int) -> None:
    """Write ``weights`` into ``panels``, whose manifest is :func:`panel_manifest`'s."""

    def put(name: str, norm: torch.Tensor | None = None) -> None:
        matrix = weights[name + "_proj"] if name != "lm_head" else head
        _put_matrix(matrix, norm, panels[name + "_proj"], lanes if "gate_up" in name else 0)
        bias, into = weights.get(name + "_bias"), panels.get(name + "_bias")
        if bias is not None and into is not None:
            _put_bias(bias, into, lanes if "gate_up" in name else 0)

    embedding = weights["embed_tokens"]
    head = embedding if config.tie_word_embeddings else weights["lm_head"]
    panels["embed_tokens"].copy_(embedding)
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}."
        put(prefix + "qkv", weights[prefix + "input_norm"])
        put(prefix + "o")
        put(prefix + "gate_up", weights[prefix + "mlp_norm"])
        put(prefix + "down")
        if config.qk_norm:
            panels[prefix + "qk_norm"].copy_(weights[prefix + "qk_norm"])
    put("lm_head", weights["norm"])


def _put_matrix(
    matrix: torch.Tensor, norm: torch.Tensor | None, into: torch.Tensor, lanes: int
) -> None:
    """``lanes``: of the vectors that alternate between the two halves of the outputs, 0: none."""
    count, inputs, panel = into.shape
    scaled = matrix if norm is None else matrix * norm
    rows = scaled.new_zeros((count * panel, inputs))
    _spread(scaled, rows, lanes)
    into.copy_(rows.view(count, panel, inputs).transpose(1, 2))


def _put_bias(bias: torch.Tensor, into: torch.Tensor, lanes: int) -> None:
    into.zero_()
    _spread(bias, into, lanes)


def _spread(values: torch.Tensor, into: torch.Tensor, lanes: int) -> None:
    if not lanes:
        into[: len(values)] = values
        return
    half = len(values) // 2
    alternating = into.view(-1, 2, lanes, *into.shape[1:])
    for which, part in enumerate((values[:half], values[half:])):
        padded = part.new_zeros((alternating.shape[0] * lanes, *part.shape[1:]))
        padded[:half] = part
        alternating[:, which] = padded.view(-1, lanes, *part.shape[1:])
