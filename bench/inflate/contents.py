"""What each tensor of the big model holds: where the small model's numbers go, and the rest.

Rows that take part in the small model's function hold it and zeros. Rows that cannot matter,
because what follows them is zero, hold random numbers: a device then works on numbers, not on
zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from bench.inflate.layout import SPARE_NORM, SPARE_WEIGHT, Layout
from bench.inflate.names import EMBEDDING, FINAL_NORM, LM_HEAD, layer_prefix, layer_shapes

Background = Literal["zeros", "ones", "noise"]
NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight"}


@dataclass(frozen=True, slots=True)
class Patch:
    """``values`` [len(rows), len(columns)] at these places; float64, rounded when written."""

    rows: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class Contents:
    """A tensor of the big model: what it holds where no patch lies, and the patches.

    ``quiet`` rows are zero outside of the patches whatever the background. A vector is a matrix of
    one column.
    """

    background: Background
    patches: list[Patch] = field(default_factory=list)
    quiet: torch.Tensor | None = None


class Inflation:
    """The big model's tensors, made one at a time from the small one's.

    ``weights``: the small model's tensors by name. What does not fit the written ``dtype`` is
    rounded; where there is a mirror, it holds the rest of scaled matrices.
    """

    def __init__(
        self, layout: Layout, weights: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> None:
        self._layout = layout
        self._weights = weights
        self._dtype = dtype
        source = layout.source
        self._channels = torch.arange(source.hidden_size)
        self._mirrored = [
            (self._channels + number * source.hidden_size, factor)
            for number, factor in enumerate(layout.mirrors, 1)
        ]
        self._rotary = torch.tensor(layout.rotary_dims)

    def contents(self) -> Iterator[tuple[str, tuple[int, ...], Contents]]:
        """Name, shape and contents of every tensor, in the order of the layers."""
        target = self._layout.target
        vocabulary = (target.vocab_size, target.hidden_size)
        yield EMBEDDING, vocabulary, self._embedding()
        for layer in range(target.num_layers):
            for name, shape in layer_shapes(target):
                yield layer_prefix(layer) + name, shape, self._of_layer(layer, name)
        yield FINAL_NORM, (target.hidden_size,), self._final_norm()
        if not target.tie_word_embeddings:
            yield LM_HEAD, vocabulary, self._lm_head()

    def _embedding(self) -> Contents:
        layout = self._layout
        ids = torch.arange(layout.source.vocab_size)
        patches = self._into_channels(ids, self._get(EMBEDDING), transposed=True)
        if layout.spare is not None:
            constant = torch.full((len(ids), 2), layout.constant, dtype=torch.float64)
            patches.append(Patch(ids, torch.tensor(layout.spare), constant))
            if layout.target.tie_word_embeddings:
                patches.append(self._never_chosen(layout.spare[0]))
        return Contents("zeros", patches)

    def _lm_head(self) -> Contents:
        layout = self._layout
        tied = layout.source.tie_word_embeddings
        ids = torch.arange(layout.source.vocab_size)
        values = self._get(EMBEDDING if tied else LM_HEAD)
        patches = [Patch(ids, self._channels, values)]
        if layout.spare is not None:
            patches.append(self._never_chosen(layout.spare[0]))
        return Contents("zeros", patches)

    def _never_chosen(self, channel: int) -> Patch:
        """The rows of added ids."""
        added = torch.arange(self._layout.source.vocab_size, self._layout.target.vocab_size)
        values = torch.full((len(added), 1), SPARE_WEIGHT, dtype=torch.float64)
        return Patch(added, torch.tensor([channel]), values)

    def _final_norm(self) -> Contents:
        layout = self._layout
        patches = [_vector(self._channels, self._get(FINAL_NORM) * layout.norm_scale)]
        if layout.spare is not None:
            signs = torch.tensor([SPARE_NORM, -SPARE_NORM], dtype=torch.float64)
            patches.append(_vector(torch.tensor(layout.spare), signs))
        return Contents("zeros", patches)

    def _of_layer(self, layer: int, name: str) -> Contents:
        used = layer < self._layout.source.num_layers
        stem, kind = name.rsplit(".", 1)
        if name in NORMS:
            return Contents("ones", self._norm(layer_prefix(layer) + name) if used else [])
        if stem.endswith("_norm"):
            return Contents("ones", self._head_norm(layer, name) if used else [])
        into_residual = stem.endswith(("o_proj", "down_proj"))
        background: Background = "zeros" if into_residual or kind == "bias" else "noise"
        full_name = layer_prefix(layer) + name
        if not used or full_name not in self._weights:
            return Contents(background)
        values = self._get(full_name)
        if stem.endswith("o_proj"):
            patches = self._output(values) if kind == "weight" else self._residual_bias(values)
            return Contents(background, patches)
        if stem.endswith("down_proj"):
            width = torch.arange(self._layout.source.intermediate_size)
            if kind == "bias":
                return Contents(background, self._residual_bias(values))
            return Contents(background, self._into_channels(width, values))
        if stem.startswith("mlp."):
            return self._reading(torch.arange(len(values)), values, kind, background)
        return self._projection(stem[-6], values, kind, background)

    def _projection(
        self, part: str, values: torch.Tensor, kind: str, background: Background
    ) -> Contents:
        """A query, key or value projection: rows of the heads in use."""
        layout = self._layout
        size, big_size = layout.source.head_dim, layout.target.head_dim
        heads = layout.query_heads if part == "q" else layout.kv_heads
        places = torch.arange(size) if part == "v" else self._rotary
        scale = {
            "q": layout.projection_scale * layout.query_scale,
            "k": layout.projection_scale,
            "v": 1.0,
        }[part]
        rows = torch.cat([big * big_size + places for _, big in heads])
        values = values.reshape(-1, size, *values.shape[1:]) * scale
        values = torch.cat([values[head] for head, _ in heads])
        quiet = torch.cat([big * big_size + torch.arange(big_size) for _, big in heads])
        return self._reading(rows, values, kind, background, quiet)

    def _reading(
        self,
        rows: torch.Tensor,
        values: torch.Tensor,
        kind: str,
        background: Background,
        quiet: torch.Tensor | None = None,
    ) -> Contents:
        """A tensor that reads normalised channels, or the bias after it."""
        if kind == "bias":
            return Contents(background, [_vector(rows, values)])
        patches = [Patch(rows, self._channels, values)]
        for mirror, factor in self._mirrored[:1]:
            lost = values - values.to(self._dtype).double()
            patches.append(Patch(rows, mirror, lost / factor))
        return Contents(background, patches, rows if quiet is None else quiet)

    def _output(self, values: torch.Tensor) -> list[Patch]:
        """The output projection of attention: columns of the heads in use.

        Where a small head has several big key/value heads, its query still has one place.
        """
        size, big_size = self._layout.source.head_dim, self._layout.target.head_dim
        columns = torch.cat(
            [big * big_size + torch.arange(size) for _, big in self._layout.query_heads]
        )
        return self._into_channels(columns, values)

    def _into_channels(
        self, others: torch.Tensor, values: torch.Tensor, transposed: bool = False
    ) -> list[Patch]:
        """What writes into the channels, and into the mirrors.

        values: [channels, others], or [others, channels] if transposed.
        """
        return [
            Patch(others, channels, values * factor)
            if transposed
            else Patch(channels, others, values * factor)
            for channels, factor in [(self._channels, 1.0), *self._mirrored]
        ]

    def _residual_bias(self, values: torch.Tensor) -> list[Patch]:
        return self._into_channels(torch.zeros(1, dtype=torch.int64), values[:, None])

    def _norm(self, name: str) -> list[Patch]:
        values = self._get(name) * self._layout.norm_scale
        places = [self._channels, *(channels for channels, _ in self._mirrored)]
        return [_vector(channels, values) for channels in places]

    def _head_norm(self, layer: int, name: str) -> list[Patch]:
        scale = self._layout.key_norm_scale if "k_norm" in name else 1.0
        return [_vector(self._rotary, self._get(layer_prefix(layer) + name) * scale)]

    def _get(self, name: str) -> torch.Tensor:
        return self._weights[name].double()


def _vector(rows: torch.Tensor, values: torch.Tensor) -> Patch:
    return Patch(rows, torch.zeros(1, dtype=torch.int64), values[:, None])
