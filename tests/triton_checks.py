"""What Triton's kernels must compute, on a GPU or in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st

from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.memory.triton_cache import TritonKVCache
from pdv_mp.model.architecture import ModelConfig, RopeConfig
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.loading import random_weights
from pdv_mp.model.transformer import Transformer
from pdv_mp.model.triton_transformer import TritonTransformer

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

BASE = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=97,
    hidden_size=48,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=40,
    rms_norm_eps=1e-5,
    rope=RopeConfig(10000.0),
    max_position_embeddings=4096,
)
FAMILIES = {
    "llama": BASE,
    "llama, tied, one head of each": replace(
        BASE, tie_word_embeddings=True, num_heads=1, num_kv_heads=1, head_dim=24
    ),
    "qwen2": replace(BASE, attention_bias=True),
    "qwen3": replace(BASE, qk_norm=True, head_dim=32),
    "all biases": replace(BASE, attention_bias=True, attention_output_bias=True, mlp_bias=True),
}


@dataclass(frozen=True)
class Case:
    """A batch of attention: sequences of (first position, rows), and the shape of a layer."""

    sequences: tuple[tuple[int, int], ...]
    num_kv_heads: int
    group_size: int
    head_dim: int
    block_size: int
    splits: int | None
    dtype: torch.dtype
    seed: int


@st.composite
def cases(draw: st.DrawFn, head_dims: tuple[int, ...], longest: int) -> Case:
    """Prefill, decoding and verification rows side by side; ``splits`` None: as the cache says."""
    kind = st.one_of(
        st.tuples(st.integers(0, longest), st.sampled_from([1, 2, 5, 9])),
        st.tuples(st.sampled_from([0, 1, 16, 31]), st.integers(1, 40)),
    )
    return Case(
        sequences=tuple(draw(st.lists(kind, min_size=1, max_size=4))),
        num_kv_heads=draw(st.sampled_from([1, 2, 3])),
        group_size=draw(st.sampled_from([1, 2, 3, 4, 7])),
        head_dim=draw(st.sampled_from(head_dims)),
        block_size=draw(st.sampled_from([1, 8, 16, 24])),
        splits=draw(st.sampled_from([None, 1, 2, 5])),
        dtype=draw(st.sampled_from(list(TOLERANCES))),
        seed=draw(st.integers(0, 999)),
    )


def check_attention(case: Case, device: str) -> None:
    """The kernel against gather and scaled dot product attention in float32."""
    generator = torch.Generator().manual_seed(case.seed)
    width = case.num_kv_heads * case.head_dim
    config = replace(
        BASE,
        num_layers=1,
        num_heads=case.num_kv_heads * case.group_size,
        num_kv_heads=case.num_kv_heads,
        head_dim=case.head_dim,
    )
    ends = [start + rows for start, rows in case.sequences]
    slots, per_slot = len(ends), -(-max(ends) // case.block_size)
    num_blocks = slots * per_slot
    arguments = (config, num_blocks, case.block_size, slots, max(ends))
    cache = TritonKVCache(*arguments, case.dtype, device)
    exact = PagedKVCache(*arguments, torch.float32, device)
    pool = torch.randn(cache.pool.shape, generator=generator)
    pool[:, cache.dummy_block] = torch.nan  # a block that nobody may read
    cache.pool.copy_(pool)
    exact.pool.copy_(cache.pool.float())
    order = torch.randperm(num_blocks, generator=generator).view(slots, per_slot).tolist()
    for slot, blocks in enumerate(order):
        used = -(-ends[slot] // case.block_size)
        cache.set_blocks(slot, blocks[:used])
        # Gathering reads the blocks of the longest lane; what is masked there must be finite.
        exact.set_blocks(slot, blocks)
    batch = ForwardBatch.build(
        np.zeros(sum(rows for _, rows in case.sequences), np.int64),
        np.array([rows for _, rows in case.sequences]),
        np.array([start for start, _ in case.sequences]),
        np.arange(slots),
        None,
        device,
    )
    # As in a forward pass: a view of wider rows, whose keys and values are new.
    rows = torch.randn(batch.num_rows, (case.group_size + 2) * width, generator=generator)
    qkv = rows.to(case.dtype).to(device)
    query, kv = qkv[:, : case.group_size * width], qkv[:, case.group_size * width :]
    plan, exact_plan = cache.plan(batch), exact.plan(batch)
    if case.splits is not None:
        plan = replace(plan, splits=case.splits)
    cache.write(0, kv, plan)
    exact.write(0, kv.float(), exact_plan)
    out = cache.attend(0, query, plan)
    expected = exact.attend(0, query.float(), exact_plan)
    assert out.dtype == case.dtype
    assert out.shape == query.shape
    error = (out.float() - expected).abs().max()
    assert float(error) <= TOLERANCES[case.dtype] * max(1.0, float(expected.abs().max())), error


def check_forward(family: str, dtype: torch.dtype, device: str) -> None:
    """Prefill, verification and a static batch of the whole forward pass, against the plain one."""
    config = FAMILIES[family]
    weights = random_weights(config, dtype, torch.device(device), seed=1)
    caches = []
    for kind in (PagedKVCache, TritonKVCache):
        cache = kind(config, 40, 16, 4, 150, dtype, device)
        for slot in range(4):
            cache.set_blocks(slot, list(range(slot, 40, 4)))
        caches.append(cache)
    models = (Transformer(config, weights, 150), TritonTransformer(config, weights, 150))
    rng = np.random.default_rng(0)
    starts = np.zeros(4, np.int64)
    for lens in ([17, 1, 40, 4], [5, 1, 3, 1], [1, 1, 1, 1]):
        tokens = rng.integers(0, config.vocab_size, sum(lens))
        batch = ForwardBatch.build(
            tokens, np.array(lens), starts, np.arange(4), np.cumsum(lens) - 1, device
        )
        plain, fast = (m.forward(batch, c) for m, c in zip(models, caches, strict=True))
        scale = float(plain.abs().max())
        assert float((plain - fast).abs().max()) <= 3 * TOLERANCES[dtype] * scale
        starts = starts + np.array(lens)
    before, after = (cache.pool[:, : cache.num_blocks].float() for cache in caches)
    assert float((before - after).abs().max()) <= 3 * TOLERANCES[dtype] * float(before.abs().max())
    check_static(models, caches, starts, device, 3 * TOLERANCES[dtype])


def check_static(
    models: tuple[Transformer, TritonTransformer],
    caches: list[PagedKVCache],
    starts: np.ndarray,
    device: str,
    tolerance: float,
) -> None:
    """Two rows of every lane, the tables and positions being known on the device alone."""
    positions = (starts[:, None] + np.arange(2)).ravel()
    lanes = np.repeat(np.arange(4), 2)
    batch = ForwardBatch.build(np.arange(8), np.full(4, 2), starts, np.arange(4), None, device)
    logits = []
    for model, cache in zip(models, caches, strict=True):
        blocks = cache.block_table[lanes, positions // 16].astype(np.int64)
        places = torch.from_numpy(blocks * 16 + positions % 16).to(device)
        tables = torch.from_numpy(cache.block_table).to(device)
        plan = cache.static_plan(tables, batch.positions, places)
        logits.append(model.forward(batch, cache, plan))
    assert float((logits[0] - logits[1]).abs().max()) <= tolerance * float(logits[0].abs().max())
