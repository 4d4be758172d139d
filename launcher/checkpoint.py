"""What the headers of a checkpoint's safetensors files say, checked without reading weights.

The header is 8 bytes of length (little-endian), then that many bytes of JSON: name, dtype, shape
and place of every tensor. It gives away files that were cut short, and weights of another model.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.errors import ModelError
from pdv_mp.model.fusion import is_derived, placements
from pdv_mp.model.loading import weight_files
from pdv_mp.model.shape import ModelShape

MAX_HEADER_BYTES = 100_000_000
"""As in the safetensors library."""

READABLE_TYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]


def check_weights(folder: Path, config: ModelShape) -> None:
    """Checks a checkpoint's tensors, and compares them with what our own forward pass needs.

    What transformers' modules need is known only to them: they compare names and shapes when they
    load. Raises ModelError for a file that is damaged or cut short, and for tensors that are
    missing, unexpected, quantised or of another shape.
    """
    if isinstance(config, ModelConfig):
        _check_tensors(folder, config)
        return
    for path in weight_files(folder):
        for name, tensor in read_header(path).items():
            if tensor.dtype.startswith(("F4", "F6", "F8")):
                raise _quantised(path, name, tensor)


def _check_tensors(folder: Path, config: ModelConfig) -> None:
    missing = placements(config)
    for path in weight_files(folder):
        for name, tensor in read_header(path).items():
            placement = missing.pop(name, None)
            if placement is None:
                if not is_derived(config, name):
                    raise ModelError(f"{path}: tensor {name} is not one of this model's.")
                continue
            if tensor.shape != placement.shape:
                raise ModelError(
                    f"{path}: {name} has shape {list(tensor.shape)}, expected "
                    f"{list(placement.shape)}."
                )
            if tensor.dtype not in READABLE_TYPES:
                raise _quantised(path, name, tensor)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"{folder}: tensor {next(iter(missing))}{more} is missing.")


def _quantised(path: Path, name: str, tensor: TensorHeader) -> ModelError:
    return ModelError(f"{path}: {name} is {tensor.dtype}; use a checkpoint in F32, F16 or BF16.")


def read_header(path: Path) -> dict[str, TensorHeader]:
    """The tensors of a safetensors file by name. Raises ModelError for one that is damaged."""
    try:
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES or 8 + length > file_size:
                raise ModelError(f"{path} is damaged or cut short: it has no whole header.")
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        tensors, data_size = _parse(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is damaged: its header cannot be read.") from error
    if 8 + length + data_size != file_size:
        raise ModelError(
            f"{path} is damaged or cut short: it has {file_size} bytes, but its header speaks of "
            f"{8 + length + data_size}."
        )
    return tensors


def _parse(header: dict[str, Any]) -> tuple[dict[str, TensorHeader], int]:
    """The tensors, and where the last one ends."""
    tensors: dict[str, TensorHeader] = {}
    end = 0
    for name, entry in header.items():
        if name != "__metadata__":
            shape = tuple(int(size) for size in entry["shape"])
            tensors[name] = TensorHeader(str(entry["dtype"]), shape)
            end = max(end, int(entry["data_offsets"][1]))
    return tensors, end
