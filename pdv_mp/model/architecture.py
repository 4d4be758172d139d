"""What a checkpoint's config.json says, reduced to what the forward pass needs.

Nothing here imports torch: the launcher checks models before it starts any process.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pdv_mp.model.errors import ModelError

RopeKind = Literal["default", "linear", "llama3"]

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class _Family:
    """Defaults of an architecture for keys that its config.json may omit."""

    num_kv_heads: int | None
    head_dim: int | None
    sliding_window: int | None
    max_position_embeddings: int
    always_qkv_bias: bool = False
    may_have_attention_bias: bool = False
    may_have_mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window_switch: bool = False


FAMILIES: dict[str, _Family] = {
    "LlamaForCausalLM": _Family(
        num_kv_heads=None,
        head_dim=None,
        sliding_window=None,
        max_position_embeddings=2048,
        may_have_attention_bias=True,
        may_have_mlp_bias=True,
    ),
    "MistralForCausalLM": _Family(
        num_kv_heads=8, head_dim=None, sliding_window=4096, max_position_embeddings=4096 * 32
    ),
    "Qwen2ForCausalLM": _Family(
        num_kv_heads=32,
        head_dim=None,
        sliding_window=4096,
        max_position_embeddings=32768,
        always_qkv_bias=True,
        sliding_window_switch=True,
    ),
    "Qwen3ForCausalLM": _Family(
        num_kv_heads=32,
        head_dim=128,
        sliding_window=4096,
        max_position_embeddings=32768,
        may_have_attention_bias=True,
        qk_norm=True,
        sliding_window_switch=True,
    ),
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (arXiv 2104.09864): base and frequency scaling.

    `factor` applies to `linear` and `llama3`; the last three fields to `llama3` only.
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position_embeddings: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape and constants of one Llama-family model.

    `attention_bias` means biases on q, k and v; `attention_output_bias` on o. `sliding_window` is
    the window in tokens or None: full attention is computed, so a longer context is refused.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "float32"

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def context_limit(self) -> int:
        """The largest max_model_len that `check_max_model_len` accepts, in tokens."""
        if self.sliding_window is None:
            return self.max_position_embeddings
        return min(self.max_position_embeddings, self.sliding_window)

    def check_max_model_len(self, max_model_len: int) -> None:
        """Raise ModelError when this model cannot attend over `max_model_len` tokens."""
        if max_model_len > self.max_position_embeddings:
            raise ModelError(
                f"max_model_len {max_model_len} exceeds the model's context of "
                f"{self.max_position_embeddings} tokens; choose at most that."
            )
        if self.sliding_window is not None and max_model_len > self.sliding_window:
            raise ModelError(
                f"max_model_len {max_model_len} exceeds the model's sliding window of "
                f"{self.sliding_window} tokens and sliding-window attention is not supported; "
                f"choose at most {self.sliding_window}."
            )

    def kv_bytes_per_token(self, dtype: object) -> int:
        """Bytes of keys and values of one token in all layers; `dtype` as 'float32' or torch's."""
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPE_BYTES:
            raise ValueError(f"KV caches are float32, bfloat16 or float16, not {name}")
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * DTYPE_BYTES[name]

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read config.json, and generation_config.json for the end-of-sequence ids.

        Raises ModelError with one sentence for a missing or unreadable file, an architecture, rope
        scaling, activation or quantisation that is not supported, and impossible sizes.
        """
        folder = Path(folder)
        config = _Reader(folder / "config.json", read_json(folder / "config.json"))
        architectures = config.values.get("architectures") or []
        name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
        if name not in FAMILIES:
            raise ModelError(
                f"{folder}: architecture {name or '(none given)'} is not supported; supported are "
                f"{', '.join(FAMILIES)}."
            )
        family = FAMILIES[name]
        if config.values.get("quantization_config") is not None:
            raise ModelError(
                f"{folder}: quantised checkpoints are not supported; use one in bfloat16, float16 "
                "or float32."
            )
        activation = config.values.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise ModelError(f"{folder}: activation {activation} is not supported; only silu is.")
        num_heads = config.integer("num_attention_heads")
        hidden_size = config.integer("hidden_size")
        head_dim = config.integer("head_dim", family.head_dim or hidden_size // num_heads)
        attention_bias = family.may_have_attention_bias and config.flag("attention_bias")
        generation = folder / "generation_config.json"
        generation_values = read_json(generation) if generation.exists() else {}
        eos = generation_values.get("eos_token_id")
        result = cls(
            architecture=name,
            vocab_size=config.integer("vocab_size"),
            hidden_size=hidden_size,
            num_layers=config.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=config.integer("num_key_value_heads", family.num_kv_heads or num_heads),
            head_dim=head_dim,
            intermediate_size=config.integer("intermediate_size"),
            rms_norm_eps=config.number("rms_norm_eps", 1e-6),
            rope=_rope(config),
            max_position_embeddings=config.integer(
                "max_position_embeddings", family.max_position_embeddings
            ),
            tie_word_embeddings=config.flag("tie_word_embeddings"),
            attention_bias=attention_bias or family.always_qkv_bias,
            attention_output_bias=attention_bias,
            mlp_bias=family.may_have_mlp_bias and config.flag("mlp_bias"),
            qk_norm=family.qk_norm,
            sliding_window=_sliding_window(config, family),
            bos_token_id=config.token_id("bos_token_id"),
            eos_token_ids=config.token_ids(
                eos if eos is not None else config.values.get("eos_token_id")
            ),
            dtype=str(config.values.get("dtype") or config.values.get("torch_dtype") or "float32"),
        )
        if result.num_heads % result.num_kv_heads:
            raise ModelError(
                f"{folder}: {result.num_heads} attention heads cannot share "
                f"{result.num_kv_heads} key/value heads evenly."
            )
        if result.head_dim % 2:
            raise ModelError(f"{folder}: head_dim {result.head_dim} is odd; rotary needs it even.")
        return result


@dataclass(frozen=True, slots=True)
class _Reader:
    """Typed access to the values of one JSON file, with errors that name file and key."""

    path: Path
    values: dict[str, Any]

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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelError when it is missing, unreadable or not an object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent}: {path.name} is missing.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} does not hold a JSON object.")
    return values


def _rope(config: _Reader) -> RopeConfig:
    """Rope settings, from `rope_parameters` (transformers 5) or `rope_theta`/`rope_scaling`."""
    values = config.values
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(scaling, dict) or any(isinstance(item, dict) for item in scaling.values()):
        raise ModelError(f"{config.path}: rope settings per layer type are not supported.")
    for source in (scaling, values):
        if source.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise ModelError(f"{config.path}: partial rotary embedding is not supported.")
    reader = _Reader(config.path, scaling)
    theta = reader.number("rope_theta", config.number("rope_theta", 10000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", reader.number("factor"))
    if kind == "llama3":
        low, high = reader.number("low_freq_factor"), reader.number("high_freq_factor")
        if high <= low:
            raise ModelError(f"{config.path}: high_freq_factor must exceed low_freq_factor.")
        return RopeConfig(
            theta,
            "llama3",
            reader.number("factor"),
            low,
            high,
            reader.integer("original_max_position_embeddings"),
        )
    raise ModelError(
        f"{config.path}: rope type {kind!r} is not supported; supported are default, linear and "
        "llama3."
    )


def _sliding_window(config: _Reader, family: _Family) -> int | None:
    values = config.values
    layer_types = values.get("layer_types")
    if layer_types is not None:
        unknown = sorted(set(map(str, layer_types)) - {"full_attention", "sliding_attention"})
        if unknown:
            raise ModelError(f"{config.path}: layers of type {unknown[0]} are not supported.")
        if "sliding_attention" not in layer_types:
            return None
    if family.sliding_window_switch and not config.flag("use_sliding_window"):
        return None
    if family.sliding_window is None or (
        "sliding_window" in values and not values["sliding_window"]
    ):
        return None
    return config.integer("sliding_window", family.sliding_window)
