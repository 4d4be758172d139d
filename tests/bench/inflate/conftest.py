"""Small sources of every family, and made-up shapes that exercise every trap."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_model import VOCABULARY, write_tokenizer

SOURCE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-4,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-multi-head": ("Llama", {"num_key_value_heads": 4}),
    "llama3-scaling": ("Llama", {"rope_parameters": LLAMA3}),
    "linear-scaling": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    ),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {}),
    "qwen3-tied": ("Qwen3", {"tie_word_embeddings": True}),
}

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 144,
    "intermediate_size": 100,
    "num_hidden_layers": 4,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "vocab_size": 350,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def make_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_source(name, dtype=…)`` saves a random small checkpoint with a tokenizer."""
    made: dict[object, Path] = {}

    def make(name: str, dtype: torch.dtype = torch.float32) -> Path:
        if (name, dtype) not in made:
            family, changes = SOURCES[name]
            config = getattr(transformers, f"{family}Config")(**{**SOURCE, **changes})
            with torch.random.fork_rng():
                torch.manual_seed(len(made))
                model = getattr(transformers, f"{family}ForCausalLM")(config)
                for key, parameter in model.named_parameters():
                    if "norm" in key:
                        parameter.data.uniform_(0.5, 1.5)
                    elif key.endswith("bias"):
                        parameter.data.normal_(0, 0.3)
            folder = tmp_path_factory.mktemp(name)
            model.to(dtype).save_pretrained(folder)
            write_tokenizer(folder)
            made[name, dtype] = folder
        return made[name, dtype]

    return make


@pytest.fixture
def make_shape(tmp_path: Path) -> Callable[..., Path]:
    """``make_shape(**changes)`` writes a made-up config.json and returns its path."""

    def make(**changes: Any) -> Path:
        path = tmp_path / f"shape-{len(list(tmp_path.glob('shape-*')))}.json"
        path.write_text(json.dumps({**SHAPE, **changes}), encoding="utf-8")
        return path

    return make
