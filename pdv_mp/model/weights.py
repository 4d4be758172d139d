"""One flat buffer that holds all weights of a model, and the manifest that says where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from pdv_mp.model.architecture import ModelConfig

ALIGNMENT = 256
"""Byte alignment of every tensor in the buffer."""

_HASH_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Place of one tensor in the flat buffer; `offset` and `nbytes` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """All tensors of a model in the order of their offsets, and the size of the buffer."""

    entries: tuple[TensorEntry, ...]
    nbytes: int

    @classmethod
    def build(cls, config: ModelConfig, dtype: torch.dtype) -> Manifest:
        """Lay out the fused weights of a model one after the other."""
        return cls.of(_shapes(config), dtype)

    @classmethod
    def of(cls, shapes: Iterable[tuple[str, tuple[int, ...]]], dtype: torch.dtype) -> Manifest:
        """Lay out tensors of these names and shapes one after the other."""
        entries = []
        offset = 0
        for name, shape in shapes:
            nbytes = dtype.itemsize
            for size in shape:
                nbytes *= size
            entries.append(TensorEntry(name, str(dtype)[len("torch.") :], shape, offset, nbytes))
            offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return cls(tuple(entries), offset)


def _shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the fused tensors.

    Matrices are [out, in]. The rows of qkv_proj are query heads in the order [group_size,
    num_kv_heads], then key heads, then value heads; within a query or key head the two halves that
    rotary embedding pairs are interleaved. The columns of o_proj follow the order of query heads.
    """
    hidden, width = config.hidden_size, config.intermediate_size
    query = config.num_heads * config.head_dim
    fused = query + 2 * config.num_kv_heads * config.head_dim
    yield "embed_tokens", (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}."
        yield prefix + "input_norm", (hidden,)
        yield prefix + "qkv_proj", (fused, hidden)
        if config.attention_bias:
            yield prefix + "qkv_bias", (fused,)
        if config.qk_norm:
            yield prefix + "qk_norm", (config.num_heads + config.num_kv_heads, config.head_dim)
        yield prefix + "o_proj", (hidden, query)
        if config.attention_output_bias:
            yield prefix + "o_bias", (hidden,)
        yield prefix + "mlp_norm", (hidden,)
        yield prefix + "gate_up_proj", (2 * width, hidden)
        if config.mlp_bias:
            yield prefix + "gate_up_bias", (2 * width,)
        yield prefix + "down_proj", (hidden, width)
        if config.mlp_bias:
            yield prefix + "down_bias", (hidden,)
    yield "norm", (hidden,)
    if not config.tie_word_embeddings:
        yield "lm_head", (config.vocab_size, hidden)


class Weights:
    """Named views into one flat uint8 buffer."""

    def __init__(self, manifest: Manifest, buffer: torch.Tensor) -> None:
        """`buffer`: contiguous uint8 with at least manifest.nbytes bytes, else ValueError."""
        if buffer.dtype != torch.uint8 or buffer.dim() != 1 or not buffer.is_contiguous():
            raise ValueError("weights live in a contiguous one-dimensional uint8 tensor")
        if buffer.numel() < manifest.nbytes:
            raise ValueError(f"weights need {manifest.nbytes} bytes, not {buffer.numel()}")
        self.manifest = manifest
        self.buffer = buffer[: manifest.nbytes]
        self._tensors = {
            entry.name: self.buffer[entry.offset : entry.offset + entry.nbytes]
            .view(getattr(torch, entry.dtype))
            .view(entry.shape)
            for entry in manifest.entries
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor, or None when the model has none of that name."""
        return self._tensors.get(name)

    @property
    def dtype(self) -> torch.dtype:
        return self._tensors["embed_tokens"].dtype

    @property
    def device(self) -> torch.device:
        return self.buffer.device

    def fingerprint(self) -> str:
        """sha256 over the manifest and every weight: equal for equal models on any device."""
        digest = hashlib.sha256()
        for entry in self.manifest.entries:
            digest.update(json.dumps([entry.name, entry.dtype, entry.shape]).encode())
            data = self.buffer[entry.offset : entry.offset + entry.nbytes]
            for start in range(0, entry.nbytes, _HASH_CHUNK):
                digest.update(data[start : start + _HASH_CHUNK].cpu().numpy().data)
        return digest.hexdigest()
