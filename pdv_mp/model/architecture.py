"""What a checkpoint's config.json says, reduced to what our own forward pass needs.

Nothing here imports torch: the launcher checks models before it starts any process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pdv_mp.model.config_file import ConfigFile
from pdv_mp.model.errors import ModelError, UnsupportedModelError
from pdv_mp.model.shape import ModelShape

RopeKind = Literal["default", "linear", "llama3"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(ModelShape):
    """Shape and constants of one Llama-family model.

    `attention_bias` means biases on q, k and v; `attention_output_bias` on o.
    """

    hidden_size: int
    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read config.json, and generation_config.json for the end-of-sequence ids.

        Raises UnsupportedModelError for an architecture, rope scaling, activation or kind of layer
        that our forward pass does not know, ModelError for a missing or unreadable file, quantised
        weights and impossible sizes; one sentence each.
        """
        folder = Path(folder)
        config = ConfigFile.of(folder)
        name = config.architecture
        if name not in FAMILIES:
            raise UnsupportedModelError(
                f"{folder}: architecture {name or '(none given)'} is not supported; supported are "
                f"{', '.join(FAMILIES)}."
            )
        family = FAMILIES[name]
        config.refuse_quantised()
        activation = config.values.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise UnsupportedModelError(
                f"{folder}: activation {activation} is not supported; only silu is."
            )
        num_heads = config.integer("num_attention_heads")
        hidden_size = config.integer("hidden_size")
        head_dim = config.integer("head_dim", family.head_dim or hidden_size // num_heads)
        attention_bias = family.may_have_attention_bias and config.flag("attention_bias")
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
            eos_token_ids=config.eos_token_ids,
            dtype=config.dtype,
        )
        if result.num_heads % result.num_kv_heads:
            raise ModelError(
                f"{folder}: {result.num_heads} attention heads cannot share "
                f"{result.num_kv_heads} key/value heads evenly."
            )
        if result.head_dim % 2:
            raise ModelError(f"{folder}: head_dim {result.head_dim} is odd; rotary needs it even.")
        return result


def _rope(config: ConfigFile) -> RopeConfig:
    """Rope settings, from `rope_parameters` (transformers 5) or `rope_theta`/`rope_scaling`."""
    values = config.values
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(scaling, dict) or any(isinstance(item, dict) for item in scaling.values()):
        raise UnsupportedModelError(
            f"{config.path}: rope settings per layer type are not supported."
        )
    for source in (scaling, values):
        if source.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise UnsupportedModelError(
                f"{config.path}: partial rotary embedding is not supported."
            )
    reader = ConfigFile(config.path, scaling)
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
    raise UnsupportedModelError(
        f"{config.path}: rope type {kind!r} is not supported; supported are default, linear and "
        "llama3."
    )


def _sliding_window(config: ConfigFile, family: _Family) -> int | None:
    values = config.values
    layer_types = values.get("layer_types")
    if layer_types is not None:
        unknown = sorted(set(map(str, layer_types)) - {"full_attention", "sliding_attention"})
        if unknown:
            raise UnsupportedModelError(
                f"{config.path}: layers of type {unknown[0]} are not supported."
            )
        if "sliding_attention" not in layer_types:
            return None
    if family.sliding_window_switch and not config.flag("use_sliding_window"):
        return None
    if family.sliding_window is None or (
        "sliding_window" in values and not values["sliding_window"]
    ):
        return None
    return config.integer("sliding_window", family.sliding_window)
