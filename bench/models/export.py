"""Export a trained model as an ordinary Hugging Face checkpoint in bfloat16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.models.llama import TrainingLlama
from bench.models.shapes import END_OF_TEXT_ID, ModelShape

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def llama_config(shape: ModelShape) -> dict[str, object]:
    """The content of ``config.json``, with the names of both transformers 4 and 5."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": END_OF_TEXT_ID,
        "dtype": "bfloat16",
        "eos_token_id": END_OF_TEXT_ID,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.context_length,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocabulary_size,
    }


def export_model(model: TrainingLlama, tokenizer_folder: Path, folder: Path) -> None:
    """Write configuration, weights and tokenizer to ``folder``, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", llama_config(model.shape))
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": END_OF_TEXT_ID, "do_sample": False, "eos_token_id": END_OF_TEXT_ID},
    )
    weights = {
        name: value.detach().to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
    }
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, folder / name)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
