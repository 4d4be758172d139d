"""Writing a checkpoint to disk piece by piece, in safetensors files of bounded size.

A file of this format is the length of a header as 8 bytes, little-endian; the header, JSON that
gives type, shape and place of every tensor; and the tensors one after the other
(https://huggingface.co/docs/safetensors, "Format"). All of a header is known beforehand, so that no
more than one piece of one tensor is ever in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from bench.inflate.contents import Contents

PIECE = 1 << 26
"""Bytes of a tensor that are made at a time, at most (one row, if that is more)."""

TYPES = {"float32": "F32", "bfloat16": "BF16"}
NOISE_SCALE = 0.02
_NOISE_LENGTH = (1 << 20) + 7
"""Random numbers that rows without meaning repeat; odd, so that rows differ."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its name and (tensor name, shape) of what it holds, in order."""

    file: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]


def split(shapes: Iterable[tuple[str, tuple[int, ...]]], itemsize: int, limit: int) -> list[Shard]:
    """Fill files up to ``limit`` bytes; a tensor that is larger has a file of its own."""
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in shapes:
        nbytes = math.prod(shape) * itemsize
        if groups[-1] and size + nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append((name, shape))
        size += nbytes
    if len(groups) == 1:
        return [Shard("model.safetensors", tuple(groups[0]))]
    return [
        Shard(f"model-{index:05d}-of-{len(groups):05d}.safetensors", tuple(group))
        for index, group in enumerate(groups, 1)
    ]


def header(shard: Shard, dtype: str, itemsize: int) -> bytes:
    """What a file begins with: length and header, padded with spaces to a multiple of 8."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shard.tensors:
        nbytes = math.prod(shape) * itemsize
        entries[name] = {
            "dtype": TYPES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def total_bytes(shards: Sequence[Shard], dtype: str, itemsize: int) -> int:
    """Bytes of all files together."""
    return sum(
        len(header(shard, dtype, itemsize))
        + sum(math.prod(shape) * itemsize for _, shape in shard.tensors)
        for shard in shards
    )


def write_shards(
    folder: Path,
    shards: Sequence[Shard],
    contents: Iterator[tuple[str, tuple[int, ...], Contents]],
    dtype: torch.dtype,
    seed: int,
    advance: Callable[[int], None],
) -> None:
    """Write all files and, where there are several, their index.

    ``contents`` yields the tensors in the shards' order. ``advance`` is told the bytes written.
    """
    noise = background_noise(seed, dtype)
    type_name = str(dtype).removeprefix("torch.")
    for shard in shards:
        with (folder / shard.file).open("wb") as file:
            file.write(header(shard, type_name, dtype.itemsize))
            for expected, shape in shard.tensors:
                name, found, content = next(contents)
                if (name, found) != (expected, shape):
                    raise RuntimeError(f"{name} {found} came where {expected} {shape} belongs")
                for piece in pieces(name, shape, content, noise):
                    advance(_write(file, piece))
    if len(shards) > 1:
        _write_index(folder, shards, dtype.itemsize)


def _write_index(folder: Path, shards: Sequence[Shard], itemsize: int) -> None:
    size = sum(math.prod(shape) for shard in shards for _, shape in shard.tensors) * itemsize
    index = {
        "metadata": {"total_size": size},
        "weight_map": {name: shard.file for shard in shards for name, _ in shard.tensors},
    }
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def background_noise(seed: int, dtype: torch.dtype) -> torch.Tensor:
    """What rows without meaning are made of; for :func:`pieces`."""
    noise = torch.empty(_NOISE_LENGTH, dtype=torch.float32)
    noise.normal_(0, NOISE_SCALE, generator=torch.Generator().manual_seed(seed))
    return noise.to(dtype)


def pieces(
    name: str, shape: tuple[int, ...], content: Contents, noise: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The tensor's rows from first to last, [rows, columns] a piece."""
    rows, columns = shape[0], math.prod(shape[1:])
    step = max(1, PIECE // (columns * noise.itemsize))
    start = _noise_start(name)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        if content.background == "noise":
            piece = _repeat(noise, start + first * columns, (last - first) * columns)
        else:
            value = 1.0 if content.background == "ones" else 0.0
            piece = torch.full(((last - first) * columns,), value, dtype=noise.dtype)
        piece = piece.view(last - first, columns)
        if content.quiet is not None:
            piece[content.quiet[(content.quiet >= first) & (content.quiet < last)] - first] = 0
        for patch in content.patches:
            chosen = (patch.rows >= first) & (patch.rows < last)
            if chosen.any():
                places = patch.rows[chosen] - first
                values = patch.values[chosen].to(noise.dtype)
                piece[places[:, None], patch.columns] = values
        yield piece


def whole_tensor(
    name: str, shape: tuple[int, ...], content: Contents, noise: torch.Tensor
) -> torch.Tensor:
    """What all of :func:`pieces` make together, in the shape, on the device of ``noise``."""
    count, device = math.prod(shape), noise.device
    if content.background == "noise":
        start = _noise_start(name) % len(noise)
        tensor = noise.roll(-start).repeat(-(-count // len(noise)))[:count]
    else:
        value = 1.0 if content.background == "ones" else 0.0
        tensor = torch.full((count,), value, dtype=noise.dtype, device=device)
    tensor = tensor.view(shape[0], -1)
    if content.quiet is not None:
        tensor[content.quiet.to(device)] = 0
    for patch in content.patches:
        values = patch.values.to(noise.dtype).to(device)
        tensor[patch.rows.to(device)[:, None], patch.columns.to(device)] = values
    return tensor.view(shape)


def _noise_start(name: str) -> int:
    """Where the noise of a tensor begins."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def _repeat(noise: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """``length`` numbers of the endless repetition of ``noise``, from number ``start`` on."""
    start %= len(noise)
    if start + length <= len(noise):
        return noise[start : start + length].clone()
    return noise.repeat(-(-(start + length) // len(noise)))[start : start + length]


def _write(file: BinaryIO, piece: torch.Tensor) -> int:
    return file.write(piece.contiguous().view(torch.uint8).numpy().data)
