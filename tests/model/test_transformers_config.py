"""config.json of any architecture: sizes under their many names, limits, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.errors import ModelError
from pdv_mp.model.implementation import read_model
from pdv_mp.model.shape import ModelShape
from pdv_mp.model.transformers_config import TransformersConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
ANY = {**LLAMA, "architectures": ["OtherForCausalLM"], "model_type": "other"}
GPT = {
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 100,
    "n_layer": 3,
    "n_head": 4,
    "n_embd": 64,
    "n_positions": 70,
    "eos_token_id": 7,
}


def read(folder: Path, values: dict[str, Any], implementation: str = "auto") -> ModelShape:
    (folder / "config.json").write_text(json.dumps(values))
    return read_model(folder, implementation)


def test_names_of_the_sizes(tmp_path: Path) -> None:
    config = read(tmp_path, GPT)
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (3, 4, 4)
    assert (config.head_dim, config.context_limit, config.vocab_size) == (16, 70, 100)
    assert config.eos_token_ids == (7,)
    assert config.kv_bytes_per_token("float32") == 2 * 3 * 4 * 16 * 4
    assert read(tmp_path, {**GPT, "multi_query": True}).num_kv_heads == 1
    grouped = read(tmp_path, {**ANY, "num_key_value_heads": 2, "head_dim": 24})
    assert (grouped.num_kv_heads, grouped.group_size, grouped.head_dim) == (2, 2, 24)


def test_auto_takes_our_forward_pass_where_it_can(tmp_path: Path) -> None:
    yarn = {**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
    for values, ours in (
        (LLAMA, True),
        (ANY, False),
        (yarn, False),
        ({**LLAMA, "hidden_act": "gelu"}, False),
        ({**LLAMA, "partial_rotary_factor": 0.5}, False),
    ):
        kind = ModelConfig if ours else TransformersConfig
        assert type(read(tmp_path, values)) is kind
        assert type(read(tmp_path, values, "transformers")) is TransformersConfig
        if not ours:
            with pytest.raises(ModelError, match="Perhaps --model-impl transformers"):
                read(tmp_path, values, "pdv")
    assert type(read(tmp_path, LLAMA, "pdv")) is ModelConfig
    with pytest.raises(ModelError, match="vocab_size is missing"):
        read(tmp_path, {**LLAMA, "vocab_size": None})


def test_defaults_of_a_known_family_hold_for_both(tmp_path: Path) -> None:
    mistral = {**LLAMA, "architectures": ["MistralForCausalLM"], "num_attention_heads": 8}
    del mistral["max_position_embeddings"]
    ours, theirs = (read(tmp_path, mistral, name) for name in ("pdv", "transformers"))
    assert ours.num_kv_heads == theirs.num_kv_heads == 8
    assert ours.context_limit == theirs.context_limit == 4096


@pytest.mark.parametrize(
    ("changes", "limit", "message"),
    [
        ({}, 128, "context of 128"),
        ({"sliding_window": 100}, 100, "sliding window of 100"),
        ({"sliding_window": 100, "use_sliding_window": False}, 128, "context of 128"),
        ({"sliding_window": 100, "layer_types": ["full_attention"] * 2}, 128, "context of 128"),
        (
            {"sliding_window": 90, "layer_types": ["full_attention", "sliding_attention"]},
            90,
            "sliding window of 90",
        ),
        ({"attention_chunk_size": 64}, 64, "sliding window of 64"),
        (
            {
                "rope_scaling": {"type": "longrope", "long_factor": [1.0]},
                "original_max_position_embeddings": 32,
            },
            32,
            "exceeds the 32 tokens after which",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}},
            128,
            "context of 128",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "original_max_position_embeddings": 50}},
            50,
            "exceeds the 50 tokens",
        ),
    ],
)
def test_context_limit(tmp_path: Path, changes: dict[str, Any], limit: int, message: str) -> None:
    config = read(tmp_path, {**ANY, **changes})
    assert config.context_limit == limit
    config.check_max_model_len(limit)
    with pytest.raises(ModelError, match=message):
        config.check_max_model_len(limit + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"add_cross_attention": True}, "states of an encoder"),
        ({"text_config": {"hidden_size": 8}}, "reads more than text"),
        ({"attn_logit_softcapping": 50.0}, "soft-caps attention scores"),
        ({"alibi": True}, "ALiBi"),
        ({"model_type": "bloom"}, "ALiBi"),
        ({"kv_lora_rank": 16}, "different sizes"),
        ({"state_size": 16}, "state-space"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "type linear_attention"),
        ({"layers_block_type": ["attention", "mamba"]}, "type mamba"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"architectures": None}, "architectures is missing"),
        ({"num_attention_heads": None}, "num_attention_heads is missing"),
        ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
        ({"num_hidden_layers": -1}, "must be a positive integer"),
    ],
)
def test_what_config_json_gives_away_is_refused_in_one_sentence(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read(tmp_path, {**ANY, **changes}, "transformers")
    assert "\n" not in str(caught.value)


def test_reading_a_model_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    read(tmp_path, GPT)
    program = (
        "import sys; import launcher.checks, launcher.checkpoint\n"
        "from pdv_mp.model.implementation import read_model\n"
        "assert type(read_model(sys.argv[1])).__name__ == 'TransformersConfig'\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
