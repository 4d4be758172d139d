"""What config.json says of a model that is computed by transformers' own modules.

Nothing here imports torch or transformers, so defaults of transformers' configuration classes are
not known here; the start-up check of transformers_check.py compares what is read here with what the
modules really compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdv_mp.model.architecture import FAMILIES
from pdv_mp.model.config_file import ConfigFile
from pdv_mp.model.errors import ModelError
from pdv_mp.model.shape import ModelShape

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")
HIDDEN = ("hidden_size", "n_embd", "d_model")
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
"""Names that architectures give the same thing, most usual first."""

ATTENTION_LAYERS = ("full_attention", "sliding_attention")

_REFUSED = {
    "is_encoder_decoder": "it is an encoder-decoder",
    "add_cross_attention": "it attends to the states of an encoder",
    "text_config": "it reads more than text",
    "attn_logit_softcapping": "it soft-caps attention scores",
    "alibi": "its attention has biases by distance (ALiBi)",
    "kv_lora_rank": "its keys and values have different sizes",
    "mamba_d_state": "it has layers of a state-space model",
    "ssm_state_size": "it has layers of a state-space model",
    "state_size": "it has layers of a state-space model",
    "linear_num_value_heads": "it has layers of linear attention",
    "conv_L_cache": "it has layers of convolution",
}
"""Keys of config.json that, if set, mean what our KV caches cannot do."""

_REFUSED_TYPES = {
    "bloom": "its attention has biases by distance (ALiBi)",
    "mpt": "its attention has biases by distance (ALiBi)",
}

_CHANGING_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersConfig(ModelShape):
    """The shape of a model of any architecture; `architecture` is the name of its class."""

    @classmethod
    def from_folder(cls, folder: str | Path) -> TransformersConfig:
        """Read config.json, and generation_config.json for the end-of-sequence ids.

        Raises ModelError, one sentence, for a missing or unreadable file, a key that is needed and
        missing, and every property of a model that its config.json shows and we cannot serve.
        """
        folder = Path(folder)
        config = ConfigFile.of(folder)
        name = config.architecture
        if not name:
            raise ModelError(
                f"{config.path}: architectures is missing; it names the model's class."
            )
        config.refuse_quantised()
        _refuse(config, name)
        family = FAMILIES.get(name)
        num_heads = _first(config, HEADS)
        num_kv_heads = _first(config, KV_HEADS, _usual_kv_heads(config, name, num_heads))
        if num_heads % num_kv_heads:
            raise ModelError(
                f"{folder}: {num_heads} attention heads cannot share {num_kv_heads} key/value "
                "heads evenly."
            )
        head_dim = config.values.get("head_dim") or (family.head_dim if family else None)
        return cls(
            architecture=name,
            vocab_size=config.integer("vocab_size"),
            num_layers=_first(config, LAYERS),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=config.integer("head_dim", head_dim or _first(config, HIDDEN) // num_heads),
            max_position_embeddings=_first(
                config, CONTEXT, family.max_position_embeddings if family else None
            ),
            sliding_window=_sliding_window(config, family.sliding_window if family else None),
            rope_change=_rope_change(config),
            bos_token_id=config.token_id("bos_token_id"),
            eos_token_ids=config.eos_token_ids,
            dtype=config.dtype,
        )


def _first(config: ConfigFile, keys: tuple[str, ...], default: int | None = None) -> int:
    """The value of the first key that the file has."""
    present = (key for key in keys if config.values.get(key) is not None)
    return config.integer(next(present, keys[0]), default)


def _usual_kv_heads(config: ConfigFile, name: str, num_heads: int) -> int:
    """Key/value heads where the file gives no number."""
    family = FAMILIES.get(name)
    if family is not None and family.num_kv_heads is not None:
        return family.num_kv_heads
    return 1 if config.values.get("multi_query") is True else num_heads


def _refuse(config: ConfigFile, name: str) -> None:
    """Raises ModelError for what the file itself gives away."""
    model_type = str(config.values.get("model_type"))
    reasons = [reason for key, reason in _REFUSED.items() if config.values.get(key)]
    if model_type in _REFUSED_TYPES:
        reasons.append(_REFUSED_TYPES[model_type])
    layers = config.values.get("layer_types") or config.values.get("layers_block_type") or []
    other = sorted(set(map(str, layers)) - {*ATTENTION_LAYERS, "attention"})
    if other:
        reasons.append(f"it has layers of type {other[0]}")
    if reasons:
        raise ModelError(f"{config.path.parent}: {name} is not supported: {reasons[0]}.")


def _sliding_window(config: ConfigFile, usual: int | None) -> int | None:
    """The shortest distance at which any layer stops to attend, in tokens."""
    values = config.values
    layer_types = values.get("layer_types")
    windows = []
    if values.get("attention_chunk_size") is not None:
        windows.append(config.integer("attention_chunk_size"))
    slides = layer_types is None or "sliding_attention" in layer_types
    if values.get("use_sliding_window") is not False and slides:
        if values.get("sliding_window"):
            windows.append(config.integer("sliding_window"))
        elif usual is not None and "sliding_window" not in values:
            windows.append(usual)
    return min(windows, default=None)


def _rope_change(config: ConfigFile) -> int | None:
    """The length at which a rotary embedding changes with the length of the text, if one does."""
    lengths = []
    for rope in _ropes(config.values.get("rope_parameters") or config.values.get("rope_scaling")):
        if rope.get("rope_type", rope.get("type")) in _CHANGING_ROPE:
            source = ConfigFile(config.path, rope)
            usual = config.values.get("original_max_position_embeddings")
            limit = usual or _first(config, CONTEXT)
            lengths.append(source.integer("original_max_position_embeddings", limit))
    return min(lengths, default=None)


def _ropes(settings: object) -> Iterator[dict[str, Any]]:
    """The settings of all layers, or those of each type of layer."""
    if isinstance(settings, dict):
        nested = [part for part in settings.values() if isinstance(part, dict)]
        yield from nested or [settings]
