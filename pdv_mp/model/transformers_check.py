"""The start-up check of a model of transformers: does it compute the same through our cache?

Two short sequences go through the model's own eager attention, one by one, and then through our
attention function in two ragged batches with a paged cache. What the cache cannot do for a model
(positions that its modules ignore, states beside keys and values, scores with biases, masks of its
own) shows as a refusal by that function or as other logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pdv_mp.memory.blocks import blocks_for
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.errors import ModelError
from pdv_mp.model.transformers_model import ATTENTION, TransformersModel

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from pdv_mp.model.transformers_config import TransformersConfig

LENGTHS = (13, 8)
CACHED = (6, 5)
"""Tokens of the two sequences, and how many of them the first batch holds."""

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
"""Mean difference of logits, as a share of their standard deviation, that arithmetic may cause."""

FOREIGN_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What transformers raises for a configuration, a checkpoint or a call that it cannot deal with."""


def adopt(
    config: TransformersConfig, model: PreTrainedModel, max_model_len: int
) -> TransformersModel:
    """A loaded model, with its own eager attention, as one whose attention is that of our caches.

    Raises ModelError if it would not compute what it should.
    """
    generator = np.random.default_rng(0)
    texts = [
        generator.integers(0, config.vocab_size, min(length, max_model_len)) for length in LENGTHS
    ]
    try:
        expected = _own_logits(model, texts)
        model.set_attn_implementation(ATTENTION)
    except FOREIGN_ERRORS as error:
        raise ModelError(
            f"{config.architecture} is not supported: transformers cannot compute it: "
            f"{first_line(error)}"
        ) from error
    if model.config._attn_implementation != ATTENTION:
        raise _not_interface(config)
    ours = TransformersModel(config, model, max_model_len)
    try:
        found = _cached_logits(ours, model.device, model.dtype, texts)
    except ModelError:
        raise
    except FOREIGN_ERRORS as error:
        raise ModelError(
            f"{config.architecture} is not supported: transformers cannot compute it over a KV "
            f"cache of ours: {first_line(error)}"
        ) from error
    if not ours.layers_called:
        raise _not_interface(config)
    if sorted(ours.layers_called) != list(range(config.num_layers)):
        raise ModelError(
            f"{config.architecture} is not supported: attention is called for the layers "
            f"{list(ours.layers_called)} instead of once for each of {config.num_layers}."
        )
    _compare(config, expected, found, TOLERANCE[model.dtype])
    return ours


def first_line(error: BaseException) -> str:
    """The beginning of a message that may have many lines."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _not_interface(config: TransformersConfig) -> ModelError:
    return ModelError(
        f"{config.architecture} is not supported: its attention does not go through transformers' "
        "AttentionInterface."
    )


@torch.inference_mode()
def _own_logits(model: PreTrainedModel, texts: list[NDArray[np.int64]]) -> torch.Tensor:
    parts = []
    for text in texts:
        ids = torch.from_numpy(text).to(model.device)[None]
        parts.append(model(input_ids=ids, use_cache=False, return_dict=True).logits[0].float())
    return torch.cat(parts)


def _cached_logits(
    model: TransformersModel,
    device: torch.device,
    dtype: torch.dtype,
    texts: list[NDArray[np.int64]],
) -> torch.Tensor:
    """The same rows as `_own_logits`, each sequence in two pieces, in batches of both."""
    block_size = 4
    length = max(map(len, texts))
    blocks = blocks_for(length, block_size)
    count = len(texts)
    cache = PagedKVCache(model.config, count * blocks, block_size, count, length, dtype, device)
    for slot in range(count):
        # Interleaved, so that one sequence's keys are never where another's would be.
        cache.set_blocks(slot, range(slot, count * blocks, count))
    rows: list[list[torch.Tensor]] = [[] for _ in texts]
    starts = [0] * count
    ends = [min(cached, len(text) - 1) for cached, text in zip(CACHED, texts, strict=True)]
    for order in (range(count), range(count - 1, -1, -1)):
        lengths = [ends[i] - starts[i] for i in order]
        batch = ForwardBatch.build(
            np.concatenate([texts[i][starts[i] : ends[i]] for i in order]),
            np.array(lengths),
            np.array([starts[i] for i in order]),
            np.array(order),
            np.arange(sum(lengths))[::-1],
            device,
        )
        logits = model.forward(batch, cache).flip(0)
        for i, end in zip(order, np.cumsum(lengths).tolist(), strict=True):
            rows[i].append(logits[end - (ends[i] - starts[i]) : end])
        starts, ends = ends, [len(text) for text in texts]
    return torch.cat([part for parts in rows for part in parts])


def _compare(
    config: TransformersConfig, expected: torch.Tensor, found: torch.Tensor, tolerance: float
) -> None:
    if expected.shape != found.shape or expected.shape[1] != config.vocab_size:
        raise ModelError(
            f"{config.architecture} is not supported: it computes {found.shape[1]} logits per "
            f"token where its config.json speaks of a vocabulary of {config.vocab_size}."
        )
    if not torch.isfinite(expected).all():
        raise ModelError(
            f"{config.architecture}: its logits are not finite in this arithmetic; choose another "
            "--dtype."
        )
    share = float((found - expected).abs().mean() / expected.std().clamp_min(1e-9))
    if not share <= tolerance:
        raise ModelError(
            f"{config.architecture} is not supported: over our KV cache its logits differ from "
            f"transformers' own by {share:.2g} of their standard deviation."
        )
