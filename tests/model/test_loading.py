"""Finding, comparing and loading checkpoints, and refusing what cannot be loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.errors import ModelError
from pdv_mp.model.loading import check_pair, load_weights, resolve_model
from pdv_mp.model.weights import ALIGNMENT, Manifest, Weights


def write_tokenizer(folder: Path, tokens: list[str], added: dict[int, str] | None = None) -> None:
    tokenizer = {
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}},
        "added_tokens": [{"id": i, "content": token} for i, token in (added or {}).items()],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.fixture
def folder(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A complete checkpoint that a test may damage."""
    copy = tmp_path / "model"
    shutil.copytree(make_checkpoint("tinyllama"), copy)
    write_tokenizer(copy, [f"t{i}" for i in range(97)])
    return copy


def load(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Weights:
    return load_weights(ModelConfig.from_folder(folder), folder, dtype, "cpu", **options)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_complete_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert resolve_model("model") == folder
    assert resolve_model("./model") == folder


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", r"config\.json is missing"),
        ("tokenizer.json", r"tokenizer\.json is missing"),
        ("model.safetensors", r"no \*\.safetensors file found"),
    ],
)
def test_missing_files_are_named(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=message):
        resolve_model(str(folder))


def test_pickle_files_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle files, which can run code"):
        resolve_model(str(folder))


def test_names_that_lead_nowhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        resolve_model(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="is a file"):
        resolve_model(str(folder / "config.json"))
    with pytest.raises(ModelError, match="neither a local folder nor a model on the hub"):
        resolve_model("not a name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="not a local folder, and the hub says"):
        resolve_model("somebody/some-model")


def test_shards_and_one_file_load_alike(make_checkpoint: Callable[..., Path]) -> None:
    single = make_checkpoint("llama-biases")
    sharded = make_checkpoint("llama-biases", save={"max_shard_size": "40KB"})
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert load(single).fingerprint() == load(sharded).fingerprint()
    next(sharded.glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-\d+\.safetensors is missing"):
        load(sharded)


def test_weights_fill_one_given_buffer(folder: Path) -> None:
    config = ModelConfig.from_folder(folder)
    manifest = Manifest.build(config, torch.float32)
    assert all(entry.offset % ALIGNMENT == 0 for entry in manifest.entries)
    buffer = torch.zeros(manifest.nbytes + 100, dtype=torch.uint8)
    weights = load(folder, into=buffer)
    assert weights["layers.2.qkv_proj"].data_ptr() >= buffer.data_ptr()
    again = Weights(manifest, buffer)
    assert again.fingerprint() == weights.fingerprint() == load(folder).fingerprint()
    buffer[manifest.entries[3].offset + 1] ^= 1
    assert again.fingerprint() != load(folder).fingerprint()
    with pytest.raises(ValueError, match="weights need"):
        load(folder, into=buffer[:100])


def test_bfloat16_checkpoints_load_as_float32(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint("qwen3", dtype=torch.bfloat16)
    assert ModelConfig.from_folder(folder).dtype == "bfloat16"
    stored = load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    weights = load(folder)
    assert stored.dtype == torch.bfloat16
    assert weights.dtype == torch.float32
    assert torch.equal(weights["layers.1.down_proj"], stored.float())
    assert torch.equal(load(folder, torch.bfloat16)["layers.1.down_proj"], stored)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.zeros(80, 48)
        tensors["model.layers.1.surprise"] = torch.zeros(1)

    def reshape(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.surprise"]
        tensors[name] = torch.zeros(80, 47)

    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.zeros(80, 48, dtype=torch.int8)

    for change, message in (
        (drop, f"tensors are missing: {name}"),
        (add, r"unexpected tensors: model\.layers\.1\.surprise"),
        (reshape, r"up_proj\.weight has shape \[80, 47\], expected \[80, 48\]"),
        (quantise, "quantised weights"),
    ):
        rewrite(folder, change)
        with pytest.raises(ModelError, match=message):
            load(folder)


def test_derived_tensors_of_old_checkpoints_are_skipped(folder: Path) -> None:
    before = load(folder).fingerprint()
    rewrite(
        folder,
        lambda t: t.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": t["lm_head.weight"][0].clone()}
        ),
    )
    assert load(folder).fingerprint() == before


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        load(folder)


def test_pairs_with_one_vocabulary_pass_whatever_their_padding(folder: Path) -> None:
    draft = folder.parent / "draft"
    shutil.copytree(folder, draft)
    check_pair(folder, draft)
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**config, "vocab_size": 128}))
    check_pair(folder, draft)
    # A token that neither model can embed does not matter.
    write_tokenizer(folder, [f"t{i}" for i in range(97)], {500: "<extra>"})
    check_pair(folder, draft)


def test_pairs_with_different_vocabularies_are_refused(folder: Path) -> None:
    draft = folder.parent / "draft"
    shutil.copytree(folder, draft)
    write_tokenizer(draft, [f"t{i}" for i in range(96)] + ["other"])
    with pytest.raises(ModelError, match=r"first is 96 \('t96' in the target, 'other' in"):
        check_pair(folder, draft)
    write_tokenizer(draft, [f"t{i}" for i in range(96)])
    with pytest.raises(ModelError, match="1 token ids differ"):
        check_pair(folder, draft)
    (draft / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="vocabulary is missing"):
        check_pair(folder, draft)


def test_unigram_vocabularies_are_compared_too(folder: Path) -> None:
    draft = folder.parent / "draft"
    shutil.copytree(folder, draft)
    vocabulary = [[f"t{i}", -float(i)] for i in range(97)]
    (draft / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    check_pair(folder, draft)
