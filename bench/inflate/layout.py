"""Where the parts of a small model lie in a big one, and which factors keep its function the same.

The small model's hidden channels are the first ones of the big model; its heads, feed-forward rows
and layers are the first as well. All other channels stay zero, apart from these:

- *Mirrors*: scaled copies of the channels. Root mean square normalisation divides by the length
  over all channels, so copies of the right length make the factor that the norm's weights must
  carry a power of two, which bfloat16 represents exactly. In matrices that need a factor which is
  no power of two, the columns of the first mirror hold what rounding took away.
- Two *spare* channels, where ids were added to the vocabulary. Every known id's embedding writes
  one constant into both. The final norm gives them opposite signs, so that they cancel in the
  logits of known ids, while an added id reads only the first, with a large negative weight. The
  constant's share in the norm is taken off the norm's epsilon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bench.inflate.errors import InflateError
from bench.inflate.shapes import TargetShape, parse_config
from pdv_mp.model.architecture import FAMILIES, ModelConfig, RopeConfig

SPARE_NORM = 2.0**13
"""The final norm's weight on the spare channels."""

SPARE_WEIGHT = -(2.0**14)
"""What an added id's row of the LM head has on the first spare channel. A final hidden state has a
root mean square of less than a thousand; the added id's logit is then below -1,000. Both numbers
are within the range of float16."""

_MOST_MIRRORS = 8
_FAINT = 2.0**-12

_DROPPED = ("auto_map", "_name_or_path", "transformers_version")
"""Keys of a shape's config.json that are about its own weights and code."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A small model's place in a big one.

    ``config``: the content of the big model's config.json, ``target`` the same as parsed.
    ``norm_scale`` multiplies the norms' weights. ``mirrors``: the factor of every mirror.
    ``spare``: the two spare channels and their constant. ``projection_scale`` and ``query_scale``
    multiply query and key matrices, and query matrices in addition; ``key_norm_scale`` the weights
    of a norm over keys. Rotary pair j of a small head is pair ``pair_stride * j`` of a big one.
    ``copies``: so many big key/value heads each small one occupies.
    """

    source: ModelConfig
    target: ModelConfig
    config: dict[str, Any]
    norm_scale: float
    mirrors: tuple[float, ...]
    spare: tuple[int, int] | None
    constant: float
    projection_scale: float
    query_scale: float
    key_norm_scale: float
    pair_stride: int
    copies: int

    @property
    def rotary_dims(self) -> list[int]:
        """The place in a big query or key head of every element of a small one."""
        half, big_half = self.source.head_dim // 2, self.target.head_dim // 2
        first = [self.pair_stride * pair for pair in range(half)]
        return [*first, *(big_half + place for place in first)]

    @property
    def kv_heads(self) -> list[tuple[int, int]]:
        """(small key/value head, big one) for every big one in use."""
        return [
            (head, head * self.copies + copy)
            for head in range(self.source.num_kv_heads)
            for copy in range(self.copies)
        ]

    @property
    def query_heads(self) -> list[tuple[int, int]]:
        """(small query head, big one): in a group of big heads that has the right keys."""
        group, big_group = self.source.group_size, self.target.group_size
        places = []
        for head in range(self.source.num_heads):
            kv_head, member = divmod(head, group)
            big_kv_head = kv_head * self.copies + member // big_group
            places.append((head, big_kv_head * big_group + member % big_group))
        return places


def make_layout(source: ModelConfig, shape: TargetShape, dtype: str) -> Layout:
    """Fit a model into a shape. Raises InflateError where it does not fit or cannot stay itself."""
    big = shape.parse()
    _check_sizes(source, big, shape.name)
    _check_features(source, big, shape.name)
    stride = big.head_dim // source.head_dim
    rope = _rope(source, big.head_dim, stride)

    widening = big.hidden_size / source.hidden_size
    padded = big.vocab_size > source.vocab_size
    spare = (big.hidden_size - 2, big.hidden_size - 1) if padded else None
    free = big.hidden_size - source.hidden_size - (2 if padded else 0)
    if free < 0:
        raise InflateError(
            f"{shape.name}: a bigger vocabulary needs two hidden channels more than the source's "
            f"{source.hidden_size}, so that added ids never win; this shape has {big.hidden_size}."
        )
    mirrors: tuple[float, ...] = ()
    energy = 1.0
    if free >= source.hidden_size:
        energy = widening
        while energy >= 4:
            energy /= 4
        mirrors = _mirrors(energy - 1.0, free // source.hidden_size)
    norm_scale = math.sqrt(energy / widening)

    eps = source.rms_norm_eps * norm_scale**2
    constant = 0.0
    if padded:
        constant = 2.0 ** math.floor(math.log2(math.sqrt(big.hidden_size * eps / 4)))
        eps -= 2 * constant**2 / big.hidden_size

    growth = big.head_dim / source.head_dim
    projection_scale, query_scale, key_norm_scale = 1.0, math.sqrt(growth), 1.0
    if source.qk_norm:
        # Norms over heads use the same epsilon; the heads take the size that fits it.
        projection_scale = math.sqrt(eps / source.rms_norm_eps * growth)
        query_scale, key_norm_scale = 1.0, math.sqrt(1 / growth)

    config = _config(shape.values, source, big, rope, eps, dtype)
    return Layout(
        source=source,
        target=parse_config(config, shape.name),
        config=config,
        norm_scale=norm_scale,
        mirrors=mirrors,
        spare=spare,
        constant=constant,
        projection_scale=projection_scale,
        query_scale=query_scale,
        key_norm_scale=key_norm_scale,
        pair_stride=stride,
        copies=-(-source.group_size // big.group_size),
    )


def _mirrors(energy: float, room: int) -> tuple[float, ...]:
    """At most ``room`` factors whose squares add up to ``energy``.

    All but the last are powers of two, and the last is one where the sum allows it. Where no energy
    is needed, one mirror so faint that its energy is below float32's rounding.
    """
    if energy == 0:
        return (_FAINT,)
    factors: list[float] = []
    while energy > 0 and len(factors) < room - 1 and len(factors) < _MOST_MIRRORS - 1:
        factors.append(2.0 ** math.floor(math.log2(energy) / 2))
        energy -= factors[-1] ** 2
    if energy > 0:
        factors.append(math.sqrt(energy))
    return tuple(factors)


def _check_sizes(source: ModelConfig, big: ModelConfig, name: str) -> None:
    copies = -(-source.group_size // big.group_size)
    for what, needed, given in (
        ("hidden size", source.hidden_size, big.hidden_size),
        ("head size", source.head_dim, big.head_dim),
        ("feed-forward size", source.intermediate_size, big.intermediate_size),
        ("number of layers", source.num_layers, big.num_layers),
        ("vocabulary", source.vocab_size, big.vocab_size),
    ):
        if given < needed:
            raise InflateError(
                f"{name}: its {what} of {given} is smaller than the source's {needed}; choose a "
                "bigger shape or a smaller source."
            )
    if big.num_kv_heads < source.num_kv_heads * copies:
        raise InflateError(
            f"{name}: its {big.num_heads} query heads on {big.num_kv_heads} key/value heads do not "
            f"hold the source's {source.num_heads} on {source.num_kv_heads}; "
            f"{source.num_kv_heads * copies} key/value heads are needed."
        )


def _check_features(source: ModelConfig, big: ModelConfig, name: str) -> None:
    family = FAMILIES[big.architecture]
    biased = big.attention_bias or family.may_have_attention_bias
    for what, in_source, possible in (
        ("query, key and value biases", source.attention_bias, biased),
        (
            "an attention output bias",
            source.attention_output_bias,
            family.may_have_attention_bias,
        ),
        ("feed-forward biases", source.mlp_bias, family.may_have_mlp_bias),
    ):
        if in_source and not possible:
            raise InflateError(
                f"{name}: the source has {what}, which {big.architecture} cannot express; choose "
                "a shape of another architecture."
            )
    if source.qk_norm != big.qk_norm:
        has, lacks = ("source", "shape") if source.qk_norm else ("shape", "source")
        raise InflateError(
            f"{name}: the {has} normalises queries and keys and the {lacks} does not, so neither "
            "can act as the other; choose a pair and a shape of the same kind."
        )


def _rope(source: ModelConfig, head_dim: int, stride: int) -> RopeConfig:
    """The source's rotary embedding on bigger heads.

    Pair i of a big head turns by theta^(-2 i / head_dim) per position; with i = stride * j that is
    the small head's angle where theta is the source's to the power below.
    """
    rope = source.rope
    power = head_dim / (stride * source.head_dim)
    theta = rope.theta if power == 1 else rope.theta**power
    return RopeConfig(
        theta,
        rope.kind,
        rope.factor,
        rope.low_freq_factor,
        rope.high_freq_factor,
        rope.original_max_position_embeddings,
    )


def _config(
    values: dict[str, Any],
    source: ModelConfig,
    big: ModelConfig,
    rope: RopeConfig,
    eps: float,
    dtype: str,
) -> dict[str, Any]:
    """The shape's config.json with the source's constants, for transformers 4 and 5 alike."""
    scaling: dict[str, Any] = {}
    if rope.kind != "default":
        scaling["factor"] = rope.factor
    if rope.kind == "llama3":
        scaling["low_freq_factor"] = rope.low_freq_factor
        scaling["high_freq_factor"] = rope.high_freq_factor
        scaling["original_max_position_embeddings"] = rope.original_max_position_embeddings
    eos = list(source.eos_token_ids)
    result = {
        **{key: value for key, value in values.items() if key not in _DROPPED},
        "head_dim": big.head_dim,
        "num_key_value_heads": big.num_kv_heads,
        "rms_norm_eps": eps,
        "rope_theta": rope.theta,
        "rope_scaling": {"rope_type": rope.kind, **scaling} if scaling else None,
        "rope_parameters": {"rope_type": rope.kind, "rope_theta": rope.theta, **scaling},
        "tie_word_embeddings": big.tie_word_embeddings and source.tie_word_embeddings,
        "bos_token_id": source.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": None,
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    family = FAMILIES[big.architecture]
    if family.may_have_attention_bias:
        result["attention_bias"] = (
            (source.attention_bias and not family.always_qkv_bias)
            or source.attention_output_bias
            or bool(values.get("attention_bias"))
        )
    if family.may_have_mlp_bias:
        result["mlp_bias"] = source.mlp_bias or big.mlp_bias
    return result
