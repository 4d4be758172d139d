from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.models.corpus import Document
from bench.models.evaluate import BEGIN_MARKER, END_MARKER, load_model
from pdv_mp import assets

MAXIMUM_TOTAL_BYTES = 20_000_000
FOLDERS = {"verifier": assets.verifier_path(), "draft": assets.draft_path()}


def test_the_pair_and_its_prompts_fit_the_size_limit() -> None:
    folders = [*FOLDERS.values(), assets.heldout_path()]
    total = sum(path.stat().st_size for folder in folders for path in folder.iterdir())
    assert total <= MAXIMUM_TOTAL_BYTES


@pytest.mark.parametrize(("name", "low", "high"), [("verifier", 6, 8), ("draft", 0.8, 1.2)])
def test_size_in_millions_of_parameters(name: str, low: float, high: float) -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDERS[name])
    assert model.dtype == torch.bfloat16
    assert low * 1e6 <= model.num_parameters() <= high * 1e6


@pytest.mark.parametrize("name", FOLDERS)
def test_configuration(name: str) -> None:
    config = json.loads((FOLDERS[name] / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 2048
    assert config["bos_token_id"] == config["eos_token_id"] == 0
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert config["vocab_size"] == 4096


@torch.no_grad()
def test_both_models_beat_the_unigram_by_far_and_use_a_long_context() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDERS["verifier"])
    text = dict(assets.heldout_files())["statistics.py"]
    ids = torch.tensor([tokenizer.encode(text)[:2048]])
    for name, limit in (("verifier", 3.0), ("draft", 3.8)):
        logits = load_model(FOLDERS[name])(input_ids=ids[:, :-1]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        assert losses.mean() < limit, name
        assert losses[1024:].mean() < limit, name


def test_prompts_are_deterministic_whole_lines_of_the_held_out_files() -> None:
    files = dict(assets.heldout_files())
    prompts = assets.heldout_prompts(64)
    assert prompts == assets.heldout_prompts(64)
    assert len(prompts) == len({text for _, text in prompts}) == 64
    for name, text in prompts:
        file, line = name.split(":")
        lines = files[file].split("\n")
        start = int(line) - 1
        assert text.split("\n") == lines[start : start + text.count("\n") + 1]
        assert 600 <= len(text) <= 1280


def test_many_and_few_prompts() -> None:
    assert len(assets.heldout_prompts(1)) == 1
    assert len(assets.heldout_prompts(500, characters=300)) == 500
    with pytest.raises(ValueError, match="must be positive"):
        assets.heldout_prompts(0)


def test_readme_has_an_evaluation() -> None:
    readme = (assets.heldout_path().parent / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index(BEGIN_MARKER) : readme.index(END_MARKER)]
    assert "| accepted / drafted |" in section
    assert section.count("````text") == 5


def test_documents_know_whether_they_are_tests() -> None:
    assert Document("test/test_ast.py", "").is_test
    assert not Document("ast.py", "").is_test
