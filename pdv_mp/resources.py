"""What a worker computes with: the models, their caches, and the facts decided at start-up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pdv_mp.config import CacheOptions, ConfigError, EngineConfig
from pdv_mp.memory.attention_plan import AttentionPlan
from pdv_mp.memory.blocks import blocks_for
from pdv_mp.memory.kv_cache import ContiguousKVCache, KVCache, PagedKVCache
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.implementation import read_model
from pdv_mp.model.language_model import LanguageModel
from pdv_mp.model.loading import load_weights, random_weights
from pdv_mp.model.shape import ModelShape
from pdv_mp.model.transformer import Transformer
from pdv_mp.model.transformers_config import TransformersConfig
from pdv_mp.pools import Pools

DEFAULT_CPU_KV_BYTES = 1 << 30
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class ModelRunner:
    """A model bound to its cache on one device.

    ``vocab_size``: ids that both models of a pair know. A checkpoint may pad its vocabulary beyond
    that; such ids have no text and the other model could not read them, so they are cut off.
    """

    name: str
    vocab_size: int
    config: ModelShape
    transformer: LanguageModel
    cache: KVCache
    device: torch.device

    def forward(self, batch: ForwardBatch, plan: AttentionPlan | None = None) -> torch.Tensor:
        """Logits [len(batch.logit_rows), vocab_size] float32; the rows' KV is written.

        ``plan``: what the cache planned for the batch, if it did so already.
        """
        logits = self.transformer.forward(batch, self.cache, plan)
        return logits if logits.shape[1] == self.vocab_size else logits[:, : self.vocab_size]


@dataclass(frozen=True, slots=True)
class Resources:
    """All that the stages of one process share."""

    target: ModelRunner
    draft: ModelRunner | None
    pools: Pools
    num_slots: int
    max_model_len: int
    dtype: torch.dtype

    def facts(self, config: EngineConfig) -> dict[str, Any]:
        """What other processes need to know of this one; see wire.engine.EngineReady."""
        return {
            "fingerprint": config.fingerprint,
            "vocab_size": self.target.vocab_size,
            "eos_ids": list(self.target.config.eos_token_ids),
            "max_model_len": self.max_model_len,
            "max_request_tokens": min(self.max_model_len, self.pools.max_tokens),
            "credits": self.num_slots,
            "model": self.target.name,
            "draft_model": self.draft.name if self.draft else None,
            "device": str(self.target.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "kv_blocks": self.pools.num_blocks,
            "block_size": self.pools.block_size,
        }


def build_resources(config: EngineConfig) -> Resources:
    """Load the models and make the pools that a configuration asks for.

    Raises ConfigError when the KV budget cannot hold even one block, ModelError for a checkpoint
    that cannot be served.
    """
    device = pick_device(config.model.device)
    if config.model.model is None:
        raise ConfigError("--model is not resolved; start the server through pdv-launch")
    target_folder = Path(config.model.model)
    draft_name = config.model.draft_model
    draft_folder = None if draft_name in (None, "none") else Path(str(draft_name))
    implementation = config.model.model_impl
    target_config = read_model(target_folder, implementation)
    draft_config = None if draft_folder is None else read_model(draft_folder, implementation)
    configs = [part for part in (target_config, draft_config) if part is not None]

    max_model_len = config.model.max_model_len or min(part.context_limit for part in configs)
    for part in configs:
        part.check_max_model_len(max_model_len)
    dtype = pick_dtype(config.model.dtype, target_config, device)
    block_size = config.cache.block_size
    num_slots = config.scheduling.max_admitted
    block_bytes = block_size * sum(part.kv_bytes_per_token(dtype) for part in configs)

    def load(part: ModelConfig | TransformersConfig, folder: Path) -> LanguageModel:
        dummy = config.model.load_format == "dummy"
        if isinstance(part, TransformersConfig):
            # Imported where it is needed: transformers takes seconds.
            from pdv_mp.model.transformers_loading import load_transformers_model

            return load_transformers_model(part, folder, dtype, device, max_model_len, dummy=dummy)
        if dummy:
            weights = random_weights(part, dtype, device, seed=0)
        else:
            weights = load_weights(part, folder, dtype, device)
        return Transformer(part, weights, max_model_len)

    transformers = [load(target_config, target_folder)]
    if draft_config is not None and draft_folder is not None:
        transformers.append(load(draft_config, draft_folder))

    num_blocks = kv_budget(config.cache, device) // block_bytes
    if not config.cache.enable_prefix_caching:
        num_blocks = min(num_blocks, num_slots * blocks_for(max_model_len, block_size))
    if num_blocks < 1:
        raise ConfigError(
            f"--kv-cache-memory is too small: one block of {block_size} tokens takes "
            f"{block_bytes} bytes"
        )
    layout = config.cache.kv_layout
    if layout == "auto":
        layout = "contiguous" if device.type == "cpu" else "paged"
    if layout == "contiguous" and device.type != "cpu":
        raise ConfigError("--kv-layout contiguous is for a CPU; use paged, or --device cpu")

    def cache(part: ModelShape) -> KVCache:
        if layout == "contiguous":
            stored = num_blocks if config.cache.enable_prefix_caching else 0
            return ContiguousKVCache(part, num_slots, max_model_len, dtype, block_size, stored)
        return PagedKVCache(part, num_blocks, block_size, num_slots, max_model_len, dtype, device)

    vocab_size = min(part.vocab_size for part in configs)
    runners = [
        ModelRunner(name, vocab_size, part, transformer, cache(part), device)
        for name, part, transformer in zip(
            (config.model.served_model_name or target_folder.name, checkpoint_name(draft_folder)),
            configs,
            transformers,
            strict=False,
        )
    ]
    caches = [runner.cache for runner in runners]
    pools = Pools(num_slots, num_blocks, block_size, caches, budget_bytes=num_blocks * block_bytes)
    draft = runners[1] if len(runners) > 1 else None
    return Resources(runners[0], draft, pools, num_slots, max_model_len, dtype)


def checkpoint_name(folder: Path | None) -> str:
    """A folder's name, or ``owner/name`` for the snapshot of a hub model in the local cache."""
    if folder is None:
        return ""
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.removeprefix("models--").replace("--", "/")
    return folder.name


def pick_device(name: str) -> torch.device:
    """The device of ``--device``. Raises ConfigError for one that this machine lacks."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is not a device; use auto, cpu or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: this machine has no usable CUDA device")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name!r} is not supported; use auto, cpu or cuda:N")
    return device


def pick_dtype(name: str, model: ModelShape, device: torch.device) -> torch.dtype:
    """The arithmetic of ``--dtype``; ``auto`` is lossless on a CPU and native on a GPU."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else model.dtype
    if name not in DTYPES:
        raise ConfigError(
            f"the checkpoint's own type {name!r} is not served; choose --dtype {', '.join(DTYPES)}"
        )
    return DTYPES[name]


def kv_budget(options: CacheOptions, device: torch.device) -> int:
    """Bytes for the KV of all models. On a GPU call it after the weights are loaded."""
    if options.kv_cache_memory is not None:
        return options.kv_cache_memory
    if device.type == "cpu":
        return DEFAULT_CPU_KV_BYTES
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(total * options.gpu_memory_utilization) - (total - free))
