"""Small random checkpoints of every supported family, saved by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-multi-head": ("Llama", {"num_key_value_heads": 4}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("Llama", {"head_dim": 20}),
    "llama3-scaling": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear-scaling": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "tinyllama": ("Llama", {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8}),
    "codellama": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "mistral": ("Mistral", {"sliding_window": 256, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16, "num_attention_heads": 6, "num_key_value_heads": 2}),
}


def _randomise(model: torch.nn.Module) -> None:
    """Give norms and biases, which start as ones and zeros, values that matter."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.data.normal_(0, 0.3)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that saves a checkpoint of one family and returns its folder."""

    def make(family: str, **changes: Any) -> Path:
        class_name, options = FAMILIES[family]
        config_class = getattr(transformers, f"{class_name}Config")
        model_class = getattr(transformers, f"{class_name}ForCausalLM")
        torch.manual_seed(len(family))
        save = changes.pop("save", {})
        model = model_class(config_class(**{**SMALL, **options, **changes}))
        _randomise(model)
        folder = tmp_path_factory.mktemp(family)
        model.to(changes.get("dtype", torch.float32)).save_pretrained(folder, **save)
        return folder

    return make


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def family_folder(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(request.param)
