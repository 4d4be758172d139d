"""Steps of a draft and of a verifier: the shipped pair, and random weights in the shape of a large
one. Each is our own forward pass over a paged cache, as a worker runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from bench.gpu_facts import gpu
from pdv_mp import assets
from pdv_mp.memory.blocks import blocks_for
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.architecture import ModelConfig, RopeConfig
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.transformer import Transformer
from pdv_mp.model.weights import Manifest, Weights
from pdv_mp.workers.device import finish

DRAFTS = 4
"""Draft tokens per cycle; the verifier's step has one row more for each sequence."""

DTYPE = torch.bfloat16
_BLOCK = 16


@dataclass(frozen=True)
class Pair:
    """The shapes of a draft and a verifier."""

    draft: Callable[[], ModelConfig]
    verify: Callable[[], ModelConfig]


_LARGE = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128_256,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14_336,
    rms_norm_eps=1e-5,
    rope=RopeConfig(500_000.0),
    max_position_embeddings=8192,
)
_SMALL = replace(_LARGE, hidden_size=2048, num_layers=16, head_dim=64, intermediate_size=8192)

PAIRS = {
    "shipped": Pair(
        lambda: ModelConfig.from_folder(assets.draft_path()),
        lambda: ModelConfig.from_folder(assets.verifier_path()),
    ),
    "8B and 1B": Pair(lambda: _SMALL, lambda: _LARGE),
}
"""The second is random weights in the shapes of Llama 3's 8B and 1B models."""


class Steps:
    """Steps of one model over ``batch`` sequences of ``context`` tokens.

    ``role``: ``draft``, one row for each sequence, or ``verify``, one row for each draft and one
    more.
    """

    def __init__(self, pair: Pair, role: str, batch: int, context: int) -> None:
        device = gpu.device()
        config = pair.draft() if role == "draft" else pair.verify()
        rows = 1 if role == "draft" else DRAFTS + 1
        length = context + rows
        blocks = blocks_for(length, _BLOCK)
        self._device = device
        self._transformer = Transformer(config, _random_weights(config, device), length)
        self._cache = PagedKVCache(config, batch * blocks, _BLOCK, batch, length, DTYPE, device)
        for slot in range(batch):
            self._cache.set_blocks(slot, range(slot * blocks, (slot + 1) * blocks))
        self._columns = (
            np.arange(batch * rows) % config.vocab_size,
            np.full(batch, rows),
            np.full(batch, context),
            np.arange(batch),
        )

    def run(self) -> None:
        """One step, planned and launched from the host, and waited for."""
        self._transformer.forward(self._batch(), self._cache)
        finish(self._device)

    def captured(self) -> Callable[[], None]:
        """The same step as a CUDA graph: what replays it once, and waits."""
        batch = self._batch()
        plan = self._cache.plan(batch)
        side = gpu.stream()
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(3):
                self._transformer.forward(batch, self._cache, plan)
        torch.cuda.current_stream(self._device).wait_stream(side)
        gpu.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._transformer.forward(batch, self._cache, plan)

        held = batch, plan  # the graph reads them for as long as it is replayed

        def replay(held: object = held) -> None:
            graph.replay()
            finish(logits.device)

        return replay

    def _batch(self) -> ForwardBatch:
        return ForwardBatch.build(*self._columns, None, self._device)


def _random_weights(config: ModelConfig, device: torch.device) -> Weights:
    """Made on the GPU, which takes no time, unlike pdv_mp.model.loading.random_weights."""
    manifest = Manifest.build(config, DTYPE)
    buffer = torch.empty(manifest.nbytes, dtype=torch.uint8, device=device)
    weights = Weights(manifest, buffer)
    for entry in manifest.entries:
        if entry.name.endswith("norm"):
            weights[entry.name].fill_(1.0)
        else:
            weights[entry.name].normal_(std=entry.shape[-1] ** -0.5)
    return weights
