"""How often draft and verifier choose the same token greedily.

Three ways to put the question: at every position of the verifier's own greedy continuation of
held-out prompts (``continuation``: what a server of this pair sees, repetition included, which is
easy to guess), of held-out text itself (``text``), or of random ids (``random``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from bench.inflate.errors import InflateError
from bench.inflate.noise import is_perturbed, perturbed
from bench.inflate.source import SmallPair
from pdv_mp import assets

Question = Literal["continuation", "text", "random"]
QUESTIONS: tuple[Question, ...] = ("continuation", "text", "random")

_RESAMPLES = 2000
_DRAFT_LENGTHS = (1, 2, 4, 8)
_LOGITS = 1 << 25
"""Logits that are in memory at a time, about."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Share of positions with the same choice, its 95 % interval, and what it was counted on.

    The interval is the middle of bootstrap samples that draw windows, not positions.
    ``accepted`` holds, for continuations, accepted over drafted tokens by draft length: what greedy
    speculative decoding of these texts would keep.
    """

    rate: float
    low: float
    high: float
    windows: int
    positions: int
    accepted: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """How much is asked: so many windows of ``context`` ids, then ``scored`` positions each."""

    windows: int = 48
    context: int = 64
    scored: int = 128


class Agreement:
    """A pair in memory, with noise of any scale on the model that is to be inflated.

    Both compute in float32; the perturbed weights are first rounded to the written dtype.
    """

    def __init__(
        self, pair: SmallPair, question: Question, sample: Sample, seed: int, dtype: torch.dtype
    ) -> None:
        """Raises InflateError where the held-out text is too short for so many windows."""
        self._role = pair.role
        self._seed = seed
        self._dtype = dtype
        self._question = question
        self._sample = sample
        self._moving = _load(pair.inflated)
        self._fixed = _load(pair.counterpart)
        self._original = {
            name: value.detach().clone()
            for name, value in self._moving.named_parameters()
            if is_perturbed(name)
        }
        for value in self._moving.parameters():
            value.data.copy_(value.data.to(dtype))
        self._vocab = min(model.config.vocab_size for model in (self._moving, self._fixed))
        length = sample.context + (0 if question == "continuation" else sample.scored)
        if question == "random":
            generator = torch.Generator().manual_seed(seed)
            self._ids = torch.randint(0, self._vocab, (sample.windows, length), generator=generator)
        else:
            self._ids = _heldout(pair.verifier, sample.windows, length, self._vocab)
        self._fixed_choices: torch.Tensor | None = None
        self._fixed_text: torch.Tensor | None = None

    def measure(self, scale: float) -> Measurement:
        """The agreement with noise of this scale."""
        moved = perturbed(self._original, scale, self._seed, self._dtype)
        for name, value in moved.items():
            self._moving.get_parameter(name).data.copy_(value)
        matches = self._matches().numpy()
        low, high = bootstrap(matches.mean(axis=1), self._seed)
        rate, accepted = float(matches.mean()), self._accepted(matches.tolist())
        return Measurement(rate, low, high, len(matches), matches.size, accepted)

    def _accepted(self, matches: list[list[bool]]) -> dict[int, float]:
        if self._question != "continuation":
            return {}
        from bench.models.evaluate import simulate_acceptance  # imports transformers, as _load

        return {k: simulate_acceptance(matches, k).rate for k in _DRAFT_LENGTHS}

    def _matches(self) -> torch.Tensor:
        """bool [windows, scored]."""
        moving = self._moving
        if self._question != "continuation":
            if self._fixed_choices is None:
                self._fixed_choices = self._choices(self._fixed, self._ids)
            return self._choices(moving, self._ids) == self._fixed_choices
        if self._role == "verifier":
            text = self._continue(moving)
            return self._choices(self._fixed, text) == text[:, self._sample.context :]
        if self._fixed_text is None:
            self._fixed_text = self._continue(self._fixed)
        text = self._fixed_text
        return self._choices(moving, text) == text[:, self._sample.context :]

    @torch.inference_mode()
    def _choices(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        """The greedy choice for every position after the context: int64 [windows, scored]."""
        start = self._sample.context - 1
        rows = max(1, _LOGITS // (ids.shape[1] * model.config.vocab_size))
        parts = []
        for first in range(0, len(ids), rows):
            logits = model(input_ids=ids[first : first + rows]).logits
            parts.append(logits[:, start:-1, : self._vocab].argmax(-1))
        return torch.cat(parts)

    @torch.inference_mode()
    def _continue(self, model: Any) -> torch.Tensor:
        """The windows with the model's greedy continuation, ends of text included."""
        text = self._ids
        step, cache = text, None
        for _ in range(self._sample.scored):
            output = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            step = output.logits[:, -1:, : self._vocab].argmax(-1)
            text = torch.cat([text, step], dim=1)
        return text


def bootstrap(rates: npt.NDArray[np.float64], seed: int) -> tuple[float, float]:
    """95 % interval of the mean of windows' rates, by drawing windows."""
    drawn = np.random.default_rng(seed).integers(0, len(rates), (_RESAMPLES, len(rates)))
    low, high = np.quantile(rates[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def _load(folder: Path) -> Any:
    # Imported where it is needed: transformers takes seconds.
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    ).eval()


def _heldout(folder: Path, windows: int, length: int, vocab: int) -> torch.Tensor:
    """Windows of the held-out files, evenly spread, in the tokens of a checkpoint."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids: list[int] = []
    for _, text in assets.heldout_files():
        ids += tokenizer.encode(text, add_special_tokens=False).ids
    if max(ids, default=0) >= vocab:
        raise InflateError(
            f"{folder}: its tokenizer has ids beyond the models' {vocab}; measure with "
            "--measure random."
        )
    if len(ids) < windows * length:
        raise InflateError(
            f"{folder}: its tokenizer makes {len(ids)} tokens of the held-out text, too few for "
            f"{windows} windows of {length}."
        )
    starts = np.linspace(0, len(ids) - length, windows).astype(int)
    return torch.tensor([ids[start : start + length] for start in starts])
