from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.models.batches import WindowSampler
from bench.models.continuations import continue_rows, sample_prompts
from bench.models.llama import TrainingLlama
from bench.models.pipeline import Pipeline, Recipe
from bench.models.shapes import END_OF_TEXT_ID, TrainingPlan


def pipeline(work: Path, recipe: Recipe, max_steps: int | None = None) -> Pipeline:
    return Pipeline(work, recipe, torch.float32, compiled=False, max_steps=max_steps)


def test_an_interrupted_run_ends_bit_identical(toy_work: Path, toy_recipe: Recipe) -> None:
    other = toy_work.parent / (toy_work.name + "_interrupted")
    shutil.copytree(toy_work, other)
    whole = pipeline(toy_work, toy_recipe)
    assert whole.train_verifier() == toy_recipe.verifier_plan.steps
    assert whole.train_draft() == toy_recipe.draft_plan.steps
    for done in (3, 6, 8):
        assert pipeline(other, toy_recipe, max_steps=3).train_verifier() == done
    for done in (3, 6, 8, 8):
        assert pipeline(other, toy_recipe, max_steps=3).train_draft() == done
    for name in ("verifier.safetensors", "draft.safetensors"):
        expected, resumed = load_file(toy_work / name), load_file(other / name)
        assert expected.keys() == resumed.keys()
        for key, value in expected.items():
            assert torch.equal(value, resumed[key]), key


def test_training_lowers_the_loss(toy_work: Path, toy_recipe: Recipe) -> None:
    made = pipeline(toy_work, toy_recipe)
    ids, targets = WindowSampler(made.corpus(), 16, 16, seed=9).batch(0)
    torch.manual_seed(toy_recipe.seed)
    untrained = TrainingLlama(toy_recipe.verifier_shape)
    made.train_verifier()
    trained = TrainingLlama(toy_recipe.verifier_shape)
    prefix = "model:"
    checkpoint = load_file(toy_work / "verifier.safetensors")
    trained.load_state_dict(
        {key[len(prefix) :]: value for key, value in checkpoint.items() if key.startswith(prefix)}
    )
    with torch.no_grad():
        assert trained.loss(ids, targets) < untrained.loss(ids, targets) - 0.1


def test_exported_folders_load_and_agree_with_the_training_module(
    toy_work: Path, toy_recipe: Recipe
) -> None:
    made = pipeline(toy_work, toy_recipe)
    made.train_verifier()
    made.train_draft()
    made.export(toy_work / "exported")
    for name, shape in (
        ("verifier", toy_recipe.verifier_shape),
        ("draft", toy_recipe.draft_shape),
    ):
        folder = toy_work / "exported" / name
        assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert theirs.config.eos_token_id == theirs.config.bos_token_id == END_OF_TEXT_ID
        ours = TrainingLlama(shape)
        ours.load_state_dict(
            {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
        )
        ids = torch.randint(0, shape.vocabulary_size, (2, 40))
        with torch.no_grad():
            torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
        assert len(AutoTokenizer.from_pretrained(folder)) == shape.vocabulary_size


@torch.no_grad()
def test_greedy_continuations_are_those_of_the_uncached_model(
    toy_work: Path, toy_recipe: Recipe
) -> None:
    torch.manual_seed(1)
    model = TrainingLlama(toy_recipe.verifier_shape)
    stream = pipeline(toy_work, toy_recipe).corpus()
    prompts = sample_prompts(stream, rows=4, length=7, seed=2)
    rows = continue_rows(model, prompts, 12, torch.tensor([0.0, 0.0, 1.0, 0.0]), seed=3)
    assert rows.shape == (4, 19)
    assert torch.equal(rows[:, :7], prompts)
    greedy = model(rows[:, :-1])[:, 6:].argmax(-1)
    same = (greedy == rows[:, 7:]).all(-1)
    assert same.tolist() == [True, True, False, True]


def test_windows_of_an_epoch_are_disjoint_and_shifted_by_one(toy_work: Path) -> None:
    recipe_free = Pipeline(toy_work, Recipe(), torch.float32, compiled=False)
    stream = recipe_free.corpus()
    sampler = WindowSampler(stream, window=16, rows=4, seed=1)
    per_epoch = ((len(stream) - 1) // 16 - 1) // 4
    seen: list[tuple[int, ...]] = []
    for step in range(per_epoch):
        ids, targets = sampler.batch(step)
        assert torch.equal(ids[:, 1:], targets[:, :-1])
        seen.extend(tuple(row) for row in ids.tolist())
    assert len(seen) == per_epoch * 4
    again = WindowSampler(stream, window=16, rows=4, seed=1).batch(per_epoch - 1)[0]
    assert torch.equal(again, ids)
    assert not torch.equal(sampler.batch(per_epoch)[0], WindowSampler(stream, 16, 4, 1).batch(0)[0])


def test_a_stage_without_the_one_before_it_says_what_to_do(
    toy_work: Path, toy_recipe: Recipe
) -> None:
    with pytest.raises(FileNotFoundError, match="train the verifier first"):
        pipeline(toy_work, toy_recipe).train_draft()


def test_rates_warm_up_stay_and_fall_to_zero() -> None:
    plan = TrainingPlan(steps=1000, warmup_steps=100, decay_share=0.4)
    factors = [plan.rate_factor(step) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[99] == factors[599] == 1.0
    assert factors[800] == pytest.approx(0.5)
    assert 0 < factors[999] < 0.01
