"""Small random checkpoints of architectures that only transformers' own modules compute."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_model import VOCABULARY, TinyPair, write_tokenizer

CONTEXT = 256
HIDDEN = 32
HEADS = 4

_USUAL = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}


@dataclass(frozen=True)
class Family:
    """Classes of transformers, the options of a small model, and its name for the layers' number.

    ``spread``: standard deviation of the random weights, such that logits differ.
    """

    config: str
    model: str
    options: dict[str, Any] = field(default_factory=lambda: dict(_USUAL))
    layers: str = "num_hidden_layers"
    spread: float = 0.3


def _usual(name: str, spread: float = 0.3, **options: Any) -> Family:
    return Family(f"{name}Config", f"{name}ForCausalLM", {**_USUAL, **options}, spread=spread)


_OPT = {
    "hidden_size": HIDDEN,
    "word_embed_proj_dim": HIDDEN,
    "num_attention_heads": HEADS,
    "ffn_dim": 48,
    "max_position_embeddings": CONTEXT,
}
_GPT = {"n_embd": HIDDEN, "n_head": HEADS, "n_positions": CONTEXT}

FAMILIES = {
    "opt": Family("OPTConfig", "OPTForCausalLM", _OPT),
    "gpt2": Family(
        "GPT2Config",
        "GPT2LMHeadModel",
        {**_GPT, "scale_attn_by_inverse_layer_idx": True},
        layers="n_layer",
    ),
    "gemma": _usual("Gemma", num_key_value_heads=1, head_dim=16, spread=0.15),
    "phi": _usual("Phi", num_key_value_heads=2),
    "gpt_neox": _usual("GPTNeoX"),
    "stablelm": _usual("StableLm", num_key_value_heads=2, use_qkv_bias=True),
    "gpt_bigcode": Family(
        "GPTBigCodeConfig", "GPTBigCodeForCausalLM", {**_GPT, "multi_query": True}, layers="n_layer"
    ),
    "cohere": _usual("Cohere", num_key_value_heads=2, logit_scale=0.5),
    "granite": _usual("Granite", num_key_value_heads=2, attention_multiplier=0.2),
    "olmo2": _usual("Olmo2", num_key_value_heads=2),
    "gemma2": _usual(
        "Gemma2",
        num_key_value_heads=2,
        head_dim=8,
        attn_logit_softcapping=None,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=20,
        sliding_window=CONTEXT,
        spread=0.15,
    ),
    "llama": _usual("Llama", num_key_value_heads=2, tie_word_embeddings=False),
}


def make_model(family: str, layers: int, **changes: Any) -> transformers.PreTrainedModel:
    """A float32 model of random weights with matrices, biases and norms that all matter."""
    known = FAMILIES[family]
    settings = getattr(transformers, known.config)(
        vocab_size=VOCABULARY,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
        **{**known.options, known.layers: layers, **changes},
    )
    model: transformers.PreTrainedModel = getattr(transformers, known.model)(settings)
    generator = torch.Generator().manual_seed(len(family) + layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(known.spread * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                parameter.add_(0.2 * noise)
    return model.eval()


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """Writes the checkpoint and a tokenizer."""
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def make_pair(family: str, folder: Path, *, noise: float = 0.03, layers: int = 2) -> TinyPair:
    """Verifier, and a draft that is its copy with some noise on every weight."""
    verifier = make_model(family, layers)
    pair = TinyPair(save(verifier, folder / "verifier"), folder / "draft")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in verifier.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    save(verifier, pair.draft)
    return pair
