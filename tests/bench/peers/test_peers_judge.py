"""The judge against transformers' own ``generate``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_model
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.peers.programs.judge import load
from bench.peers.programs.peer import Generate, Setting

PROMPTS = [[at + 40 for at in range(first, first + 12)] for first in (0, 30, 60)]
TOKENS = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tiny_model.make_tiny_pair(tmp_path_factory.mktemp("pair")).verifier
    return folder, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def judge(model: tuple[Path, PreTrainedModel]) -> Generate:
    threads = torch.get_num_threads()
    return load(Setting(str(model[0]), "", "judge", threads, 1, 64, 0, ""))


def greedy(model: PreTrainedModel) -> list[list[int]]:
    ids = torch.tensor(PROMPTS)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=TOKENS,
        max_new_tokens=TOKENS,
        pad_token_id=0,
    )
    found: list[list[int]] = output.tolist()
    return found


def test_greedy_texts_are_right(model: tuple[Path, PreTrainedModel], judge: Generate) -> None:
    texts = greedy(model[1])
    assert judge(texts, len(PROMPTS[0])).ids == [[0, 0]] * len(PROMPTS)


def test_another_token_is_wrong(model: tuple[Path, PreTrainedModel], judge: Generate) -> None:
    texts = greedy(model[1])
    texts[1][-1] = (texts[1][-1] + 1) % 256 + 1
    assert judge(texts, len(PROMPTS[0])).ids == [[0, 0], [0, 1], [0, 0]]


def test_where_the_text_would_end_the_next_best_is_right(
    model: tuple[Path, PreTrainedModel],
    judge: Generate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = greedy(model[1])
    first = texts[0][len(PROMPTS[0])]
    # The text's own first token, made the end of sequence, is forbidden now.
    monkeypatch.setattr(model[1].generation_config, "eos_token_id", first)
    other = greedy(model[1])
    assert judge(other, len(PROMPTS[0])).ids[0][1] >= 1
    folder = shutil.copytree(model[0], tmp_path / "verifier")
    model[1].generation_config.save_pretrained(folder)
    knowing = load(Setting(str(folder), "", "judge", torch.get_num_threads(), 1, 64, 0, ""))
    assert knowing(other, len(PROMPTS[0])).ids == [[0, 0]] * len(PROMPTS)
    assert knowing(texts, len(PROMPTS[0])).ids == [[0, 0]] * len(PROMPTS)
