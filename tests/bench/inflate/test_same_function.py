"""Without noise a stand-in computes what the small model does, whatever the shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.inflate.checkpoint import make_plan, write_checkpoint
from bench.inflate.errors import InflateError
from bench.inflate.shapes import find_shape
from bench.inflate.source import find_pair
from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.loading import check_pair, load_weights, resolve_model
from pdv_mp.model.transformer import Transformer

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
TIED = {"tie_word_embeddings": True}
MULTI_HEAD = {"num_attention_heads": 6, "num_key_value_heads": 6}
FOUR_TIMES = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 8}
NO_ROOM = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 300,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "wider, deeper, bigger heads and vocabulary": ("llama", {}),
    "tied into tied": ("llama-tied", TIED),
    "tied into untied": ("llama-tied", {}),
    "untied into tied": ("llama", TIED),
    "the same vocabulary": ("llama", {"vocab_size": 300}),
    "the same size but for depth": ("llama", NO_ROOM),
    "a little wider": ("llama-tied", {**TIED, "hidden_size": 36, "num_attention_heads": 6}),
    "four times as wide": ("llama", FOUR_TIMES),
    "heads that are no multiple": ("llama", {"head_dim": 12}),
    "heads of the same size": ("llama", {"head_dim": 8}),
    "keys and values twice": ("llama", {**MULTI_HEAD, "head_dim": 32}),
    "multi-head into groups": (
        "llama-multi-head",
        {"num_attention_heads": 12, "num_key_value_heads": 4},
    ),
    "biases of all kinds": ("llama-biases", {}),
    "biases into a shape with them": ("llama-biases", {"attention_bias": True, "mlp_bias": True}),
    "llama3 frequencies": ("llama3-scaling", {"head_dim": 12}),
    "linear frequencies": ("linear-scaling", {"rope_theta": 77.0}),
    "qwen2 into qwen2": ("qwen2", {**QWEN2, **TIED}),
    "qwen2 into llama": ("qwen2", {}),
    "llama into qwen2": ("llama-tied", {**QWEN2, **TIED, "head_dim": 24}),
    "qwen3 into qwen3": ("qwen3", QWEN3),
    "qwen3 into tied qwen3": ("qwen3-tied", {**QWEN3, **TIED, "head_dim": 12}),
}


def inflate(source: Path, shape: Path | str, output: Path, dtype: str = "float32") -> Path:
    pair = find_pair(str(source), "verifier", None)
    plan = make_plan(find_shape(str(shape)), pair, dtype, 10**9, seed=0)
    write_checkpoint(plan, output, None, None, {}, lambda nbytes: None)
    return output


@torch.inference_mode()
def reference_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))
    return model.eval()(input_ids=ids).logits


def our_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    config = ModelConfig.from_folder(folder)
    transformer = Transformer(
        config, load_weights(config, folder, torch.float32, "cpu"), ids.shape[1]
    )
    cache = ContiguousKVCache(config, len(ids), ids.shape[1], torch.float32, block_size=16)
    rows = len(ids)
    batch = ForwardBatch.build(
        ids.flatten().numpy(),
        np.full(rows, ids.shape[1]),
        np.zeros(rows, np.int64),
        np.arange(rows),
        None,
        "cpu",
    )
    return transformer.forward(batch, cache).view(*ids.shape, -1)


def some_ids() -> torch.Tensor:
    return torch.randint(0, 300, (2, 120), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_small_models(
    case: str, make_source: Callable[..., Path], make_shape: Callable[..., Path], tmp_path: Path
) -> None:
    name, changes = CASES[case]
    source = make_source(name)
    output = inflate(source, make_shape(**changes), tmp_path / "big")
    ids = some_ids()
    expected = reference_logits(source, ids)
    for logits in (reference_logits(output, ids), our_logits(output, ids)):
        assert (logits[..., :300] - expected).abs().max() < 1e-4
        if logits.shape[-1] > 300:
            assert logits[..., 300:].max() < expected.min() - 1000
    resolve_model(str(output))
    check_pair(output, source)
    config = ModelConfig.from_folder(output)
    assert config.eos_token_ids == (0,)


@pytest.mark.parametrize("changes", [{}, FOUR_TIMES], ids=["x4.5", "x4"])
def test_bfloat16_takes_almost_nothing_away(
    changes: dict[str, Any],
    make_source: Callable[..., Path],
    make_shape: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source = make_source("llama", torch.bfloat16)
    output = inflate(source, make_shape(**changes), tmp_path / "big", "bfloat16")
    ids = some_ids()
    difference = reference_logits(source, ids) - reference_logits(output, ids)[..., :300]
    assert difference.abs().max() < 1e-3


def test_added_layers_compute_with_numbers_and_change_nothing(
    make_source: Callable[..., Path], make_shape: Callable[..., Path], tmp_path: Path
) -> None:
    output = inflate(make_source("llama"), make_shape(), tmp_path / "big")
    tensors = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).state_dict()
    for layer in (2, 3):
        prefix = f"model.layers.{layer}."
        for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            assert not tensors[prefix + name].any()
        for name in ("self_attn.q_proj.weight", "self_attn.v_proj.weight", "mlp.up_proj.weight"):
            assert 0.01 < float(tensors[prefix + name].std()) < 0.03


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"hidden_size": 18}, "hidden size of 18 is smaller than the source's 32"),
        ("llama", {"head_dim": 6}, "head size of 6"),
        ("llama", {"intermediate_size": 40}, "feed-forward size"),
        ("llama", {"num_hidden_layers": 1}, "number of layers of 1"),
        ("llama", {"vocab_size": 299}, "vocabulary of 299"),
        ("llama", {"num_key_value_heads": 1}, "2 key/value heads are needed"),
        ("llama", NO_ROOM | {"vocab_size": 301}, "two hidden channels more"),
        ("llama-biases", QWEN2, "attention output bias, which Qwen2ForCausalLM cannot"),
        ("llama", QWEN3, "the shape normalises queries and keys"),
        ("qwen3", {}, "the source normalises queries and keys"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    name: str,
    changes: dict[str, Any],
    message: str,
    make_source: Callable[..., Path],
    make_shape: Callable[..., Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(InflateError, match=message):
        inflate(make_source(name), make_shape(**changes), tmp_path / "big")
    assert not (tmp_path / "big").exists()
