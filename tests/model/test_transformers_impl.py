"""transformers' modules over our caches against the same modules alone, for every small family."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers_families import CONTEXT, FAMILIES, make_model, save

from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.errors import ModelError
from pdv_mp.model.loading import load_weights
from pdv_mp.model.transformer import Transformer
from pdv_mp.model.transformers_config import TransformersConfig
from pdv_mp.model.transformers_loading import load_transformers_model
from pdv_mp.model.transformers_model import TransformersModel

MAX_LEN = 150
SLOTS = 6
TOLERANCE = 1e-4
KINDS = pytest.mark.parametrize("kind", ["contiguous", "paged"])

Piece = tuple[int, int, np.ndarray]
"""Slot, position of the first token, tokens."""


def make_cache(
    kind: str, config: TransformersConfig, dtype: torch.dtype = torch.float32
) -> KVCache:
    """A cache whose unused rows hold garbage, and whose paged blocks lie in disorder."""
    if kind == "contiguous":
        return ContiguousKVCache(config, SLOTS, MAX_LEN, dtype, 16)
    per_slot = -(-MAX_LEN // 16)
    cache = PagedKVCache(config, SLOTS * per_slot, 16, SLOTS, MAX_LEN, dtype, "cpu")
    cache.pool.normal_(0, 5)
    blocks = np.random.default_rng(0).permutation(SLOTS * per_slot).reshape(SLOTS, per_slot)
    for slot in range(SLOTS):
        cache.set_blocks(slot, blocks[slot].tolist())
    return cache


def load(
    folder: Path, dtype: torch.dtype = torch.float32, *, dummy: bool = False
) -> TransformersModel:
    config = TransformersConfig.from_folder(folder)
    return load_transformers_model(config, folder, dtype, "cpu", MAX_LEN, dummy=dummy)


def batch_of(pieces: list[Piece], logit_rows: np.ndarray | None = None) -> ForwardBatch:
    slots, starts, tokens = zip(*pieces, strict=True)
    lengths = np.array([len(part) for part in tokens])
    return ForwardBatch.build(
        np.concatenate(tokens), lengths, np.array(starts), np.array(slots), logit_rows, "cpu"
    )


def random_tokens(config: TransformersConfig, length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, length)


def difference(left: torch.Tensor, right: torch.Tensor) -> float:
    assert left.shape == right.shape
    assert left.dtype == torch.float32
    assert torch.isfinite(left).all()
    return float((left - right).abs().max())


@dataclass
class Model:
    """A checkpoint over our caches, and beside it as transformers alone computes it."""

    folder: Path
    ours: TransformersModel = field(init=False)
    reference: transformers.PreTrainedModel = field(init=False)

    def __post_init__(self) -> None:
        self.ours = load(self.folder)
        self.reference = transformers.AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32
        ).eval()

    @property
    def config(self) -> TransformersConfig:
        return self.ours.config

    @torch.inference_mode()
    def expected(self, tokens: np.ndarray) -> torch.Tensor:
        return self.reference(torch.from_numpy(tokens)[None]).logits[0]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    return Model(save(make_model(request.param, 3), folder))


@KINDS
def test_prefill_in_one_piece_in_chunks_and_token_by_token(model: Model, kind: str) -> None:
    tokens = random_tokens(model.config, 100, seed=1)
    expected = model.expected(tokens)
    assert float(expected.std()) > 0.3, "the reference's logits must differ for this to bite"
    for slot, chunk in ((5, 100), (2, 37), (3, 1)):
        cache = make_cache(kind, model.config)
        logits = [
            model.ours.forward(batch_of([(slot, start, tokens[start : start + chunk])]), cache)
            for start in range(0, len(tokens), chunk)
        ]
        assert difference(torch.cat(logits), expected) < TOLERANCE


@KINDS
def test_ragged_batches_of_prefill_decode_and_verify_rows(model: Model, kind: str) -> None:
    cache = make_cache(kind, model.config)
    # slot, tokens in all, of them cached before: chunks, decode rows and verify rows side by side.
    shapes = [(5, 145, 60), (3, 30, 29), (4, 60, 55), (0, 20, 16), (2, 70, 0), (1, 9, 8)]
    sequences = {slot: random_tokens(model.config, length, seed=slot) for slot, length, _ in shapes}
    cached = [(slot, 0, sequences[slot][:done]) for slot, _, done in shapes if done]
    nothing = np.array([], dtype=np.int64)
    logits = model.ours.forward(batch_of(cached, nothing), cache)
    assert logits.shape == (0, model.config.vocab_size)
    pieces = [(slot, done, sequences[slot][done:]) for slot, _, done in shapes]
    expected = torch.cat([model.expected(sequences[slot])[done:] for slot, _, done in shapes])
    assert difference(model.ours.forward(batch_of(pieces), cache), expected) < TOLERANCE
    # The same rows again, as after a roll-back, with the logits of some of them in any order.
    wanted = np.array([len(expected) - 1, 3, 87])
    some = model.ours.forward(batch_of(pieces, wanted), cache)
    assert difference(some, expected[torch.from_numpy(wanted)]) < TOLERANCE


@KINDS
def test_decoding_by_advanced_batches(model: Model, kind: str) -> None:
    cache = make_cache(kind, model.config)
    texts = [random_tokens(model.config, length, seed=length) for length in (7, 25, 26)]
    model.ours.forward(batch_of([(slot, 0, text) for slot, text in enumerate(texts)]), cache)
    steps = random_tokens(model.config, 30, seed=2).reshape(10, 3)
    batch = batch_of([(slot, len(text), steps[0, [slot]]) for slot, text in enumerate(texts)])
    plan = cache.plan(batch)
    logits = [model.ours.forward(batch, cache, plan)]
    for tokens in steps[1:]:
        batch = batch.advance(tokens)
        plan = cache.advance(plan, batch)
        logits.append(model.ours.forward(batch, cache, plan))
    for slot, text in enumerate(texts):
        expected = model.expected(np.concatenate([text, steps[:, slot]]))[len(text) :]
        assert difference(torch.stack([row[slot] for row in logits]), expected) < TOLERANCE


def test_config_is_what_transformers_reads(model: Model) -> None:
    theirs = model.reference.config
    assert model.config.num_layers == theirs.num_hidden_layers == 3
    assert model.config.num_heads == theirs.num_attention_heads
    assert model.config.context_limit == theirs.max_position_embeddings == CONTEXT
    assert model.config.eos_token_ids == (0,)
    assert model.config.dtype == "float32"


def test_dummy_weights_are_the_same_every_time(model: Model) -> None:
    tokens = random_tokens(model.config, 20, seed=3)
    logits = [
        load(model.folder, dummy=True).forward(
            batch_of([(1, 0, tokens)]), make_cache("paged", model.config)
        )
        for _ in range(2)
    ]
    assert torch.equal(*logits)
    assert torch.isfinite(logits[0]).all()
    assert float(logits[0].std()) > 0.1
    assert difference(logits[0], model.expected(tokens)) > 0.1


def test_bfloat16_stays_near_float32(model: Model) -> None:
    tokens = random_tokens(model.config, 60, seed=4)
    ours = load(model.folder, torch.bfloat16)
    logits = ours.forward(
        batch_of([(2, 0, tokens)]), make_cache("paged", model.config, torch.bfloat16)
    )
    expected = model.expected(tokens)
    assert float((logits - expected).abs().mean() / expected.std()) < 0.1


@KINDS
def test_our_forward_pass_and_transformers_modules_agree(kind: str, tmp_path: Path) -> None:
    folder = save(make_model("llama", 3), tmp_path)
    config = ModelConfig.from_folder(folder)
    own = Transformer(config, load_weights(config, folder, torch.float32, "cpu"), MAX_LEN)
    theirs = load(folder)
    pieces = [
        (3, 0, random_tokens(theirs.config, 90, 5)),
        (1, 0, random_tokens(theirs.config, 8, 6)),
    ]
    left, right = make_cache(kind, theirs.config), make_cache(kind, theirs.config)
    batch = batch_of(pieces)
    assert difference(own.forward(batch, left), theirs.forward(batch, right)) < TOLERANCE


def test_two_models_do_not_meet(tmp_path: Path) -> None:
    """Passes of two models at the same time in two threads, each with its own cache."""
    models = [load(save(make_model(name, 2), tmp_path / name)) for name in ("opt", "stablelm")]
    batches = [batch_of([(1, 0, random_tokens(model.config, 40, seed=7))]) for model in models]
    alone = [
        model.forward(batch, make_cache("paged", model.config))
        for model, batch in zip(models, batches, strict=True)
    ]
    barrier = threading.Barrier(2)
    wrong: list[str] = []

    def repeat(index: int) -> None:
        cache = make_cache("paged", models[index].config)
        for _ in range(30):
            barrier.wait()
            logits = models[index].forward(batches[index], cache)
            if not torch.equal(logits, alone[index]):
                wrong.append(models[index].config.architecture)

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_positions_beyond_the_cache_and_the_model_are_refused(tmp_path: Path) -> None:
    folder = save(make_model("opt", 1), tmp_path)
    config = TransformersConfig.from_folder(folder)
    with pytest.raises(ModelError, match=f"exceeds the model's context of {CONTEXT}"):
        load_transformers_model(config, folder, torch.float32, "cpu", CONTEXT + 1)
    model = load(folder)
    with pytest.raises(ValueError, match="beyond max_model_len"):
        model.forward(
            batch_of([(0, MAX_LEN, np.array([1]))]), make_cache("contiguous", model.config)
        )
