"""Our forward pass against transformers' own classes, in every way a batch can be cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from native_kernels import native_transformer

from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.errors import ModelError
from pdv_mp.model.language_model import LanguageModel
from pdv_mp.model.loading import load_weights, random_weights
from pdv_mp.model.transformer import Transformer

MAX_LEN = 250
SLOTS = 12
TOLERANCE = 5e-5


def make_cache(kind: str, config: ModelConfig, dtype: torch.dtype = torch.float32) -> KVCache:
    """A cache whose unused rows hold garbage, and whose paged blocks lie in disorder."""
    if kind == "contiguous":
        return ContiguousKVCache(config, SLOTS, MAX_LEN, dtype, block_size=16)
    per_slot = -(-MAX_LEN // 16)
    cache = PagedKVCache(config, SLOTS * per_slot, 16, SLOTS, MAX_LEN, dtype, "cpu")
    cache.pool.normal_(0, 5)
    blocks = np.random.default_rng(0).permutation(SLOTS * per_slot).reshape(SLOTS, per_slot)
    for slot in range(SLOTS):
        cache.set_blocks(slot, blocks[slot].tolist())
    return cache


@dataclass
class Model:
    """Our model of a checkpoint beside transformers' one."""

    folder: Path
    config: ModelConfig
    transformer: LanguageModel
    reference: torch.nn.Module

    @classmethod
    def load(cls, folder: Path, kernels: str) -> Model:
        config = ModelConfig.from_folder(folder)
        weights = load_weights(config, folder, torch.float32, "cpu")
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        if kernels == "native":
            return cls(folder, config, native_transformer(config, weights, MAX_LEN), reference)
        return cls(folder, config, Transformer(config, weights, MAX_LEN), reference)

    @torch.inference_mode()
    def expected(self, tokens: np.ndarray) -> torch.Tensor:
        return self.reference(torch.from_numpy(tokens)[None]).logits[0]

    def forward(
        self, cache: KVCache, pieces: list[tuple[int, int, np.ndarray]], wanted: bool = True
    ) -> torch.Tensor:
        """Run (slot, start, tokens) pieces as one batch; logits of all rows, or of none."""
        batch = ForwardBatch.build(
            np.concatenate([tokens for _, _, tokens in pieces]),
            np.array([len(tokens) for _, _, tokens in pieces]),
            np.array([start for _, start, _ in pieces]),
            np.array([slot for slot, _, _ in pieces]),
            None if wanted else np.array([], dtype=np.int64),
            "cpu",
        )
        return self.transformer.forward(batch, cache)


def difference(left: torch.Tensor, right: torch.Tensor) -> float:
    assert left.shape == right.shape
    assert left.dtype == torch.float32
    assert torch.isfinite(left).all()
    return float((left - right).abs().max())


def random_tokens(config: ModelConfig, length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, length)


@pytest.fixture(scope="module", params=["torch", "native"])
def model(request: pytest.FixtureRequest, family_folder: Path) -> Model:
    return Model.load(family_folder, request.param)


@pytest.fixture(scope="module", params=["torch", "native"])
def llama(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Model:
    return Model.load(make_checkpoint("llama3-scaling"), request.param)


KINDS = pytest.mark.parametrize("kind", ["contiguous", "paged"])


@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_gates_far_below_zero_close(
    make_checkpoint: Callable[..., Path], tmp_path: Path, kernels: str
) -> None:
    """Where e to the minus gate is too large for a float32."""
    folder = make_checkpoint("llama3-scaling")
    steep = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for layer in steep.model.layers:
            layer.mlp.gate_proj.weight *= 100
            layer.mlp.down_proj.weight /= 100
    steep.save_pretrained(tmp_path)
    model = Model.load(tmp_path, kernels)
    tokens = random_tokens(model.config, 64, seed=3)
    gates: list[torch.Tensor] = []
    module = model.reference.model.layers[0].mlp.gate_proj
    handle = module.register_forward_hook(lambda _, __, output: gates.append(output))
    expected = model.expected(tokens)
    handle.remove()
    assert float(gates[0].min()) < -120
    found = model.forward(make_cache("contiguous", model.config), [(0, 0, tokens)])
    assert difference(found, expected) < 1e-3 * float(expected.abs().max())


@KINDS
def test_prefill_in_one_piece_in_chunks_and_token_by_token(model: Model, kind: str) -> None:
    tokens = random_tokens(model.config, 150, seed=1)
    expected = model.expected(tokens)
    assert float(expected.std()) > 0.3, "the reference's logits must differ for this to bite"
    for slot, chunk in ((5, 150), (2, 47), (7, 1)):
        cache = make_cache(kind, model.config)
        starts = range(0, len(tokens), chunk)
        logits = [
            model.forward(cache, [(slot, start, tokens[start : start + chunk])]) for start in starts
        ]
        assert difference(torch.cat(logits), expected) < TOLERANCE


@KINDS
def test_ragged_batches_of_prefill_decode_and_verify_rows(model: Model, kind: str) -> None:
    cache = make_cache(kind, model.config)
    # slot, tokens in all, of them cached before: chunks, decode rows and verify rows side by side.
    shapes = [(9, 245, 60), (3, 30, 29), (4, 60, 55), (0, 20, 16), (6, 140, 0), (5, 9, 8)]
    sequences = {slot: random_tokens(model.config, length, seed=slot) for slot, length, _ in shapes}
    cached = [(slot, 0, sequences[slot][:done]) for slot, _, done in shapes if done]
    assert model.forward(cache, cached, wanted=False).shape == (0, model.config.vocab_size)
    pieces = [(slot, done, sequences[slot][done:]) for slot, _, done in shapes]
    logits = model.forward(cache, pieces)
    expected = torch.cat([model.expected(sequences[slot])[done:] for slot, _, done in shapes])
    assert difference(logits, expected) < TOLERANCE


@KINDS
@pytest.mark.parametrize("slots", [[0, 1, 2, 3], [7, 5, 4, 6], [1, 2, 4, 5], [0, 3, 7, 11]])
@pytest.mark.parametrize("rows", [1, 5])
def test_uniform_batches_in_any_slots(llama: Model, kind: str, slots: list[int], rows: int) -> None:
    cache = make_cache(kind, llama.config)
    sequences = [random_tokens(llama.config, 20 + 9 * i + rows, seed=i) for i in range(4)]
    llama.forward(
        cache,
        [(slot, 0, tokens[:-rows]) for slot, tokens in zip(slots, sequences, strict=True)],
        wanted=False,
    )
    pieces = [
        (slot, len(tokens) - rows, tokens[-rows:])
        for slot, tokens in zip(slots, sequences, strict=True)
    ]
    logits = llama.forward(cache, pieces)
    expected = torch.cat([llama.expected(tokens)[-rows:] for tokens in sequences])
    assert difference(logits, expected) < TOLERANCE


@KINDS
def test_random_histories_with_roll_back(llama: Model, kind: str) -> None:
    """Sequences advance by random amounts, take back a part, and never disturb one another."""
    random = np.random.default_rng(3)
    cache = make_cache(kind, llama.config)
    target = {slot: random_tokens(llama.config, MAX_LEN, seed=100 + slot) for slot in range(SLOTS)}
    expected = {slot: llama.expected(tokens) for slot, tokens in target.items()}
    committed = dict.fromkeys(target, 0)
    for _ in range(40):
        pieces, kept = [], []
        for slot in random.permutation(SLOTS)[: random.integers(1, SLOTS + 1)].tolist():
            start = committed[slot]
            count = int(random.choice([1, 3, 5, 40]))
            correct = min(int(random.integers(1, count + 1)), MAX_LEN - start)
            if correct <= 0 or start + count > MAX_LEN:
                continue
            tokens = random_tokens(llama.config, count, seed=int(random.integers(1 << 30)))
            tokens[:correct] = target[slot][start : start + correct]
            pieces.append((slot, start, tokens))
            kept.append(correct)
        if not pieces:
            continue
        logits = llama.forward(cache, pieces)
        row = 0
        for (slot, start, tokens), correct in zip(pieces, kept, strict=True):
            want = expected[slot][start : start + correct]
            assert difference(logits[row : row + correct], want) < TOLERANCE
            row += len(tokens)
            committed[slot] = start + correct
    assert sum(committed.values()) > 500


@KINDS
def test_advancing_a_batch_gives_the_logits_of_a_new_one(llama: Model, kind: str) -> None:
    """Bit by bit, where a new plan would keep the groups, which it nearly always does."""
    random = np.random.default_rng(5)
    left, right = make_cache(kind, llama.config), make_cache(kind, llama.config)
    same = 0
    for _ in range(25):
        slots = random.permutation(SLOTS)[: random.integers(1, 7)]
        lens = random.choice([1, 1, 1, 2, 3], len(slots))
        starts = random.integers(0, 100) + random.integers(0, 30, len(slots))
        tokens = random_tokens(llama.config, int(lens.sum()), int(random.integers(1 << 30)))
        prefixes = [
            (slot, 0, random_tokens(llama.config, start, start))
            for slot, start in zip(slots.tolist(), starts.tolist(), strict=True)
            if start
        ]
        for cache in (left, right):
            llama.forward(cache, prefixes, wanted=False)
        batch = fresh = ForwardBatch.build(tokens, lens, starts, slots, None, "cpu")
        plan = left.plan(batch)
        for _ in range(7):
            logits = llama.transformer.forward(batch, left, plan)
            expected = llama.transformer.forward(fresh, right)
            groups = [(g.lanes, g.context) for g in right.plan(fresh).groups]
            if groups == [(g.lanes, g.context) for g in plan.groups]:
                assert torch.equal(logits, expected)
                same += 1
            else:
                assert difference(logits, expected) < TOLERANCE
            tokens = logits[np.cumsum(batch.query_lens) - 1].argmax(-1).numpy()
            starts = fresh.start_positions + fresh.query_lens
            batch = batch.advance(tokens)
            plan = left.advance(plan, batch)
            fresh = ForwardBatch.build(tokens, np.ones_like(slots), starts, slots, None, "cpu")
    assert same > 150


@KINDS
def test_a_row_does_not_depend_on_its_company(llama: Model, kind: str) -> None:
    tokens = [random_tokens(llama.config, 30 + 11 * i, seed=i) for i in range(6)]
    cache = make_cache(kind, llama.config)
    together = llama.forward(cache, [(i, 0, t) for i, t in enumerate(tokens)])
    row = 0
    for slot, sequence in enumerate(tokens):
        alone = llama.forward(make_cache(kind, llama.config), [(slot, 0, sequence)])
        assert difference(together[row : row + len(sequence)], alone) < TOLERANCE
        row += len(sequence)


@KINDS
def test_only_the_wanted_rows_get_logits(llama: Model, kind: str) -> None:
    tokens = random_tokens(llama.config, 40, seed=8)
    wanted = np.array([39, 0, 17])
    batch = ForwardBatch.build(
        tokens, np.array([30, 10]), np.array([0, 0]), np.array([4, 2]), wanted, "cpu"
    )
    cache = make_cache(kind, llama.config)
    logits = llama.transformer.forward(batch, cache)
    expected = torch.cat([llama.expected(tokens[:30]), llama.expected(tokens[30:])])
    assert difference(logits, expected[torch.from_numpy(wanted)]) < TOLERANCE
    # Keys and values of the other rows were written all the same.
    follow = llama.forward(cache, [(4, 30, tokens[30:])])
    assert difference(follow, llama.expected(tokens)[30:]) < TOLERANCE


def test_contiguous_and_paged_agree_closely(model: Model) -> None:
    tokens = random_tokens(model.config, 100, seed=4)
    results = [
        model.forward(make_cache(kind, model.config), [(1, 0, tokens)])
        for kind in ("contiguous", "paged")
    ]
    assert difference(*results) < 5e-6


def test_packed_weights_compute_the_same_and_need_the_others_no_more(model: Model) -> None:
    weights = load_weights(model.config, model.folder, torch.float32, "cpu")
    model = replace(model, transformer=Transformer(model.config, weights, MAX_LEN, pack=True))
    weights.buffer.fill_(255)  # NaN in float32
    tokens = random_tokens(model.config, 90, seed=3)
    cache = make_cache("contiguous", model.config)
    logits = [
        model.forward(cache, [(3, start, tokens[start:end])])
        for start, end in ((0, 40), (40, 41), (41, 46), (46, 90))
    ]
    assert difference(torch.cat(logits), model.expected(tokens)) < TOLERANCE


def test_bfloat16_stays_near_float32(llama: Model) -> None:
    tokens = random_tokens(llama.config, 60, seed=2)
    weights = load_weights(llama.config, llama.folder, torch.bfloat16, "cpu")
    transformer = Transformer(llama.config, weights, MAX_LEN)
    batch = ForwardBatch.build(
        tokens, np.array([60]), np.array([0]), np.array([0]), None, torch.device("cpu")
    )
    logits = transformer.forward(batch, make_cache("paged", llama.config, torch.bfloat16))
    expected = llama.expected(tokens)
    assert difference(logits, expected) < 0.1 * float(expected.abs().max())


def test_random_weights_are_reproducible_and_usable(llama: Model) -> None:
    first = random_weights(llama.config, torch.float32, "cpu", seed=5)
    again = random_weights(llama.config, torch.float32, "cpu", seed=5)
    other = random_weights(llama.config, torch.float32, "cpu", seed=6)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    batch = ForwardBatch.build(
        random_tokens(llama.config, 20, 0),
        np.array([20]),
        np.array([0]),
        np.array([0]),
        None,
        "cpu",
    )
    logits = Transformer(llama.config, first, 64).forward(batch, make_cache("paged", llama.config))
    assert 0.2 < float(logits.std()) < 5


def test_a_context_beyond_the_model_is_refused(llama: Model) -> None:
    weights = random_weights(llama.config, torch.float32, "cpu", seed=0)
    with pytest.raises(ModelError, match="exceeds the model's context of 512"):
        Transformer(llama.config, weights, 513)


def test_positions_and_slots_outside_of_the_cache_are_refused(llama: Model) -> None:
    cache = make_cache("contiguous", llama.config)
    tokens = random_tokens(llama.config, 2, 0)
    with pytest.raises(ValueError, match="lies beyond max_model_len 250"):
        llama.forward(cache, [(0, MAX_LEN - 1, tokens)])
    with pytest.raises(ValueError, match="slot 12 of 12 does not exist"):
        llama.forward(cache, [(SLOTS, 0, tokens)])


def test_batches_that_do_not_fit_together_are_refused() -> None:
    one = np.array([1])
    with pytest.raises(ValueError, match="one entry a sequence"):
        ForwardBatch.build(one, one, np.array([0, 0]), one, None, "cpu")
    with pytest.raises(ValueError, match="add up to 3"):
        ForwardBatch.build(one, np.array([3]), one, one, None, "cpu")
    with pytest.raises(ValueError, match="must be positive"):
        ForwardBatch.build(one, np.array([0]), one, one, None, "cpu")
    with pytest.raises(ValueError, match="appears twice"):
        ForwardBatch.build(
            np.array([1, 2]), np.array([1, 1]), np.array([0, 0]), np.array([4, 4]), None, "cpu"
        )
    with pytest.raises(ValueError, match="reach outside"):
        ForwardBatch.build(one, one, one, one, np.array([1]), "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_paged_attention_on_a_gpu(llama: Model, dtype: torch.dtype, share: float) -> None:
    weights = load_weights(llama.config, llama.folder, dtype, "cuda")
    transformer = Transformer(llama.config, weights, MAX_LEN)
    cache = PagedKVCache(llama.config, 64, 16, 4, MAX_LEN, dtype, "cuda")
    for slot in range(4):
        cache.set_blocks(slot, list(range(slot, 64, 4)))
    sequences = [random_tokens(llama.config, 40 + 50 * slot, seed=slot) for slot in range(4)]
    logits = []
    for part in (slice(None, -5), slice(-5, None)):
        tokens = [sequence[part] for sequence in sequences]
        starts = [0 if part.start is None else len(sequence) - 5 for sequence in sequences]
        batch = ForwardBatch.build(
            np.concatenate(tokens),
            np.array([len(t) for t in tokens]),
            np.array(starts),
            np.arange(4),
            None,
            "cuda",
        )
        logits.append(transformer.forward(batch, cache).cpu())
    expected = torch.cat([llama.expected(sequence)[-5:] for sequence in sequences])
    assert difference(logits[1], expected) < share * float(expected.abs().max())
