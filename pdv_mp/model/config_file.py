"""Typed access to a checkpoint's JSON files, with errors that name file and key.

Nothing here imports torch: the launcher checks models before it starts any process.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdv_mp.model.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelError when it is missing, unreadable or not an object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent}: {path.name} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} does not hold a JSON object.")
    return values


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The values of one JSON object, or of a part of it. Reading them raises ModelError."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> ConfigFile:
        """The config.json of a checkpoint."""
        return cls(folder / "config.json", read_json(folder / "config.json"))

    @property
    def architecture(self) -> str:
        """The class that the weights were saved from, or '' where the file does not say."""
        architectures = self.values.get("architectures")
        if isinstance(architectures, list) and architectures:
            return str(architectures[0])
        return ""

    @property
    def dtype(self) -> str:
        """The arithmetic that the weights were saved in, as 'bfloat16'."""
        return str(self.values.get("dtype") or self.values.get("torch_dtype") or "float32")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """End-of-sequence ids, of generation_config.json if it has any."""
        generation = self.path.with_name("generation_config.json")
        values = read_json(generation) if generation.exists() else {}
        eos = values.get("eos_token_id")
        return self.token_ids(eos if eos is not None else self.values.get("eos_token_id"))

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelError(f"{self.path}: {key} is missing.")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ModelError(f"{self.path}: {key} must be a positive integer, not {value!r}.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelError(f"{self.path}: {key} is missing.")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < math.inf
        ):
            raise ModelError(f"{self.path}: {key} must be a positive number, not {value!r}.")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise ModelError(f"{self.path}: {key} must be true or false, not {value!r}.")
        return value

    def token_ids(self, value: object) -> tuple[int, ...]:
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
            raise ModelError(f"{self.path}: {value!r} is not a token id or a list of token ids.")
        return tuple(dict.fromkeys(ids))

    def token_id(self, key: str) -> int | None:
        ids = self.token_ids(self.values.get(key))
        return ids[0] if ids else None

    def refuse_quantised(self) -> None:
        """Raises ModelError for a checkpoint whose weights are quantised."""
        if self.values.get("quantization_config") is not None:
            raise ModelError(
                f"{self.path.parent}: quantised checkpoints are not supported; use one in "
                "bfloat16, float16 or float32."
            )
