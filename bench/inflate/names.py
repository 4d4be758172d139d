"""Names and shapes of a checkpoint's tensors, as transformers saves them, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

from pdv_mp.model.architecture import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


def layer_prefix(layer: int) -> str:
    """What the names of a layer's tensors begin with."""
    return f"model.layers.{layer}."


def tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a model: its name and shape; matrices are [out, in]."""
    yield EMBEDDING, (config.vocab_size, config.hidden_size)
    for layer in range(config.num_layers):
        prefix = layer_prefix(layer)
        for name, shape in layer_shapes(config):
            yield prefix + name, shape
    yield FINAL_NORM, (config.hidden_size,)
    if not config.tie_word_embeddings:
        yield LM_HEAD, (config.vocab_size, config.hidden_size)


def layer_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of one layer, without the layer's prefix."""
    hidden, width = config.hidden_size, config.intermediate_size
    query = config.num_heads * config.head_dim
    key = config.num_kv_heads * config.head_dim
    yield "input_layernorm.weight", (hidden,)
    for part, rows in (("q", query), ("k", key), ("v", key)):
        yield f"self_attn.{part}_proj.weight", (rows, hidden)
        if config.attention_bias:
            yield f"self_attn.{part}_proj.bias", (rows,)
    if config.qk_norm:
        yield "self_attn.q_norm.weight", (config.head_dim,)
        yield "self_attn.k_norm.weight", (config.head_dim,)
    yield "self_attn.o_proj.weight", (hidden, query)
    if config.attention_output_bias:
        yield "self_attn.o_proj.bias", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    for part, shape in (
        ("gate", (width, hidden)),
        ("up", (width, hidden)),
        ("down", (hidden, width)),
    ):
        yield f"mlp.{part}_proj.weight", shape
        if config.mlp_bias:
            yield f"mlp.{part}_proj.bias", (shape[0],)
