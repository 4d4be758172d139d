from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from bench.models.pipeline import Recipe
from bench.models.shapes import ContinuationPlan, ModelShape, TrainingPlan
from bench.models.tokenizer import encode_stream, save_tokenizer, train_tokenizer

VOCABULARY = 280


def toy_shape(hidden_size: int, num_layers: int) -> ModelShape:
    return ModelShape(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=24,
        vocabulary_size=VOCABULARY,
        context_length=64,
    )


@pytest.fixture
def toy_recipe() -> Recipe:
    plan = TrainingPlan(
        steps=8,
        tokens_per_batch=64,
        window=16,
        long_window=32,
        long_share=0.25,
        warmup_steps=2,
        checkpoint_steps=3,
    )
    return Recipe(
        verifier_shape=toy_shape(16, 3),
        verifier_plan=plan,
        continuation_plan=ContinuationPlan(
            batches=2, rows=6, prompt_lengths=(3, 5), sampled_period=3
        ),
        draft_shape=toy_shape(8, 1),
        draft_plan=plan,
        seed=5,
    )


@pytest.fixture
def toy_tokenizer() -> Tokenizer:
    return train_tokenizer(["def function(argument):\n    return argument + 1\n"] * 8, VOCABULARY)


@pytest.fixture
def toy_work(tmp_path: Path, toy_tokenizer: Tokenizer) -> Path:
    """A work folder whose corpus stage is done, on a small made-up text."""
    generator = random.Random(0)
    names = ["alpha", "beta", "gamma", "delta"]
    texts = [
        "".join(
            f"{generator.choice(names)} = {generator.choice(names)} + {generator.randrange(9)}\n"
            for _ in range(40)
        )
        for _ in range(6)
    ]
    save_tokenizer(toy_tokenizer, tmp_path / "tokenizer")
    np.save(tmp_path / "stream.npy", encode_stream(toy_tokenizer, texts))
    return tmp_path
