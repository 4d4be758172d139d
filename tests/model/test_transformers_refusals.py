"""Models that transformers can load and our caches cannot serve: refused at start-up, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers_families import make_model, save

from pdv_mp.model.errors import ModelError
from pdv_mp.model.transformers_config import TransformersConfig
from pdv_mp.model.transformers_loading import load_transformers_model

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def load(folder: Path, max_model_len: int = 64) -> None:
    config = TransformersConfig.from_folder(folder)
    load_transformers_model(config, folder, torch.float32, "cpu", max_model_len)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return folder


def make(folder: Path, name: str, model: str | None = None, **options: Any) -> Path:
    settings = getattr(transformers, f"{name}Config")(**{**SIZES, **options})
    built = getattr(transformers, model or f"{name}ForCausalLM")(settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    built.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "model", "options", "message"),
    [
        ("Falcon", None, {"num_kv_heads": 4, "alibi": False}, "not go through transformers' Att"),
        ("Bert", "BertLMHeadModel", {"pad_token_id": 0}, "logits differ from transformers' own"),
        ("DiffLlama", None, {}, r"called for the layers \[0, 0, 1, 1\] instead of once for each"),
        ("Doge", None, {"num_key_value_heads": 2}, "makes attention masks of its own"),
        ("GPT2", "GPT2Model", {}, "not one of transformers' causal language models; of the type"),
    ],
)
def test_attention_that_a_cache_cannot_do(
    tmp_path: Path, name: str, model: str | None, options: dict[str, Any], message: str
) -> None:
    make(tmp_path, name, model, **options)
    with pytest.raises(ModelError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_soft_capping_that_config_json_does_not_mention(tmp_path: Path) -> None:
    """The class has a default of its own, which only the modules show."""
    make(tmp_path, "Gemma2", num_key_value_heads=2, head_dim=8, attn_logit_softcapping=30.0)
    edit(tmp_path, lambda values: values.pop("attn_logit_softcapping"))
    with pytest.raises(ModelError, match="it soft-caps attention scores"):
        load(tmp_path)


def test_windows_that_config_json_does_not_mention(tmp_path: Path) -> None:
    save(make_model("gemma2", 2, sliding_window=40), tmp_path)
    assert TransformersConfig.from_folder(tmp_path).context_limit == 40
    load(tmp_path, 40)
    edit(tmp_path, lambda values: values.update(layer_types=["full_attention"] * 2))
    load(tmp_path)
    edit(tmp_path, lambda values: (values.pop("layer_types"), values.pop("sliding_window")))
    load(tmp_path)  # the class says 4096
    edit(tmp_path, lambda values: values.update(max_position_embeddings=8192))
    with pytest.raises(ModelError, match="attend to 4096 tokens only; choose --max-model-len 4096"):
        load(tmp_path, 5000)


def test_sizes_that_config_json_does_not_mention(tmp_path: Path) -> None:
    make(tmp_path, "Starcoder2", num_key_value_heads=2)
    load(tmp_path)
    edit(tmp_path, lambda values: values.pop("num_key_value_heads"))
    with pytest.raises(ModelError, match=r"config\.json speaks of 4 heads, 4 key/value"):
        load(tmp_path)


def test_code_in_the_folder_is_never_run(tmp_path: Path) -> None:
    folder = save(make_model("opt", 1), tmp_path)
    mark = tmp_path / "ran"
    (folder / "modeling_new.py").write_text(f"open({str(mark)!r}, 'w')\n")
    auto_map = {
        "AutoConfig": "modeling_new.NewConfig",
        "AutoModelForCausalLM": "modeling_new.NewForCausalLM",
    }
    edit(folder, lambda values: values.update(auto_map=auto_map))
    load(folder)  # transformers has this class itself
    edit(folder, lambda values: values.update(model_type="new"))
    with pytest.raises(ModelError, match=r"needs code that its folder brings along \(auto_map\)"):
        load(folder)
    edit(folder, lambda values: values.pop("auto_map"))
    with pytest.raises(ModelError, match="does not know the model type 'new'"):
        load(folder)
    assert not mark.exists()


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = save(make_model("opt", 1), tmp_path)
    path = folder / "model.safetensors"
    whole = load_file(path)
    name = "model.decoder.layers.0.fc1.weight"
    save_file({key: value for key, value in whole.items() if key != name}, path)
    with pytest.raises(ModelError, match=f"tensors are missing: {name}"):
        load(folder)
    save_file({**whole, name: torch.zeros(3, 3)}, path)
    with pytest.raises(ModelError, match="transformers cannot load this model"):
        load(folder)
    path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    with pytest.raises(ModelError, match="transformers cannot load this model"):
        load(folder)
    path.rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="transformers cannot load this model"):
        load(folder)


def test_logits_that_are_not_numbers(tmp_path: Path) -> None:
    model = make_model("opt", 1)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="not finite in this arithmetic; choose another --dtype"):
        load(save(model, tmp_path))
