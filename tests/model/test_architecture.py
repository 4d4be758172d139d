"""config.json of every family, in the forms that transformers 4 and 5 write."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pdv_mp.model.architecture import ModelConfig, RopeConfig
from pdv_mp.model.errors import ModelError

MINIMAL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def read(folder: Path, **changes: Any) -> ModelConfig:
    values = {**MINIMAL, **changes}
    values = {key: value for key, value in values.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(values))
    return ModelConfig.from_folder(folder)


def test_defaults_of_a_minimal_llama(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert (config.num_kv_heads, config.head_dim, config.group_size) == (4, 16, 1)
    assert config.rope == RopeConfig(10000.0)
    assert config.context_limit == config.max_position_embeddings == 2048
    flags = (config.attention_bias, config.mlp_bias, config.tie_word_embeddings)
    assert flags == (False, False, False)
    assert config.eos_token_ids == ()
    assert config.kv_bytes_per_token("bfloat16") == 2 * 2 * 4 * 16 * 2
    assert config.kv_bytes_per_token(torch.float32) == 2 * 2 * 4 * 16 * 4
    with pytest.raises(ValueError, match="int8"):
        config.kv_bytes_per_token("int8")


def test_rope_of_transformers_4_and_5(tmp_path: Path) -> None:
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 8192)
    old = read(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **llama3})
    new = read(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **llama3})
    assert old.rope == new.rope == expected
    linear = read(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})
    assert linear.rope == RopeConfig(10000.0, "linear", 2.0)


def test_end_of_sequence_ids_come_from_the_generation_config(tmp_path: Path) -> None:
    assert read(tmp_path, eos_token_id=2).eos_token_ids == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6, 5]}))
    config = read(tmp_path, eos_token_id=2, bos_token_id=1)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (5, 6))


def test_biases_by_family(tmp_path: Path) -> None:
    qwen2 = read(tmp_path, architectures=["Qwen2ForCausalLM"], num_key_value_heads=2)
    assert (qwen2.attention_bias, qwen2.attention_output_bias) == (True, False)
    llama = read(tmp_path, attention_bias=True)
    assert (llama.attention_bias, llama.attention_output_bias) == (True, True)
    qwen3 = read(tmp_path, architectures=["Qwen3ForCausalLM"], num_key_value_heads=2)
    assert (qwen3.qk_norm, qwen3.head_dim, qwen3.attention_bias) == (True, 128, False)


def test_sliding_window_limits_the_context(tmp_path: Path) -> None:
    def mistral(**changes: Any) -> ModelConfig:
        return read(
            tmp_path, architectures=["MistralForCausalLM"], num_key_value_heads=4, **changes
        )

    assert mistral().sliding_window == 4096
    assert mistral(sliding_window=None).context_limit == 131072
    config = mistral(sliding_window=1000)
    config.check_max_model_len(1000)
    with pytest.raises(ModelError, match="sliding window of 1000"):
        config.check_max_model_len(1001)
    qwen = {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 4}
    assert read(tmp_path, **qwen, sliding_window=100).sliding_window is None
    windowed = {**qwen, "sliding_window": 100, "use_sliding_window": True}
    assert read(tmp_path, **windowed).sliding_window == 100
    full = {**windowed, "layer_types": ["full_attention"] * 2}
    assert read(tmp_path, **full).sliding_window is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; supported are"),
        ({"architectures": "absent"}, r"\(none given\) is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised checkpoints"),
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "per layer type"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"vocab_size": "absent"}, "vocab_size is missing"),
        ({"vocab_size": -3}, "vocab_size must be a positive integer"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers must be a positive integer"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a positive number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
        ({"eos_token_id": "</s>"}, "is not a token id"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"layer_types": ["linear_attention"]}, "layers of type linear_attention"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="does not hold a JSON object"):
        ModelConfig.from_folder(tmp_path)


def test_every_family_is_read_as_transformers_wrote_it(family_folder: Path) -> None:
    config = ModelConfig.from_folder(family_folder)
    assert (config.vocab_size, config.num_layers, config.dtype) == (97, 3, "float32")
    assert config.max_position_embeddings == 512


def test_checking_a_model_does_not_import_torch(make_checkpoint: Callable[..., Path]) -> None:
    program = (
        "import sys; from pdv_mp.model.architecture import ModelConfig; "
        "import pdv_mp.model.loading; ModelConfig.from_folder(sys.argv[1]); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    folder = make_checkpoint("llama-tied")
    assert subprocess.run([sys.executable, "-c", program, str(folder)], check=False).returncode == 0
