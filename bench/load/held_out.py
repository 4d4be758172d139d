"""Prompts cut from the held-out source files of the shipped pair, which neither model has seen.

The *repetition rate* of a prompt is the share of its 3-grams of tokens that stood in it before:
1 - distinct n-grams / n-grams, the seq-rep-n of Welleck et al., "Neural text generation with
unlikelihood training" (2020). ``repetitive`` prompts are the third of all with the highest rate,
``plain`` ones the third with the lowest: text of its own kind tends to go on in it, and drafts are
right more often where text repeats itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from bench.load.errors import WorkloadError
from bench.load.lengths import Lengths
from pdv_mp import assets
from pdv_mp.model.errors import ModelError
from pdv_mp.model.loading import resolve_model

Variety = Literal["all", "repetitive", "plain"]

NGRAM = 3
CUT_PROMPTS = 512
"""How many prompts are cut where their lengths differ."""

_CUTS = 0xC07
"""Keeps the random numbers of the cuts apart from all others of the same seed."""


def tokenizer_of(model: str | None) -> Tokenizer:
    """The tokenizer of a verifier, a folder or hub id; None: the shipped one. Raises
    WorkloadError."""
    try:
        folder = assets.verifier_path() if model is None else resolve_model(model)
    except ModelError as error:
        raise WorkloadError(str(error)) from error
    return read_tokenizer(folder / "tokenizer.json")


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file. Raises WorkloadError."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise WorkloadError(f"{path} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def repetition_rate(ids: Sequence[int]) -> float:
    """The share of its 3-grams that stood in it before; 0 if it has none."""
    grams = [tuple(ids[at : at + NGRAM]) for at in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class HeldOut:
    """The held-out files as token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._files: list[list[int]] = [
            tokenizer.encode(text, add_special_tokens=False).ids
            for _, text in assets.heldout_files()
        ]
        self._first = _first_ids(tokenizer)
        self._all = [id for ids in self._files for id in ids]

    def windows(self, length: int, variety: Variety = "all") -> list[list[int]]:
        """All disjoint windows of ``length`` tokens, taking turns over the files; each begins with
        the ids that the tokenizer puts before a text, if it does. Raises WorkloadError if the files
        have no window of that length."""
        own = self._own(length)
        parts = [
            [ids[at : at + own] for at in range(0, len(ids) - own, own)] for ids in self._files
        ]
        most = max(len(part) for part in parts)
        found = [part[turn] for turn in range(most) for part in parts if turn < len(part)]
        if not found:
            raise WorkloadError(f"no held-out file has {length} tokens; ask for shorter prompts")
        return [self._first + ids for ids in _of_variety(found, variety)]

    def cuts(self, lengths: Lengths, count: int, seed: int) -> list[list[int]]:
        """So many prompts with lengths of a distribution, from anywhere; drawn from the seed
        alone."""
        generator = np.random.default_rng((seed, _CUTS))
        return [self.cut(lengths.draw(generator), generator) for _ in range(count)]

    def cut(self, length: int, generator: np.random.Generator) -> list[int]:
        """One prompt of ``length`` tokens from anywhere, across the ends of files if need be.
        Raises WorkloadError if it is longer than all files together."""
        own = self._own(length)
        if own > len(self._all):
            raise WorkloadError(
                f"a prompt of {length} tokens is longer than the {len(self._all)} of all held-out "
                "files; ask for shorter prompts"
            )
        at = int(generator.integers(len(self._all) - own, endpoint=True))
        return self._first + self._all[at : at + own]

    def _own(self, length: int) -> int:
        """Tokens of the text in a prompt of this length."""
        own = length - len(self._first)
        if own < 1:
            raise WorkloadError(
                f"a prompt of {length} tokens has no room for text; ask for at least "
                f"{len(self._first) + 1}"
            )
        return own


def _of_variety(windows: list[list[int]], variety: Variety) -> list[list[int]]:
    if variety == "all":
        return windows
    rates = [repetition_rate(ids) for ids in windows]
    ranked = sorted(range(len(windows)), key=lambda index: (rates[index], index))
    third = max(1, len(windows) // 3)
    chosen = ranked[-third:] if variety == "repetitive" else ranked[:third]
    return [windows[index] for index in sorted(chosen)]


def _first_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text, such as a BOS."""
    text = "a"
    bare = tokenizer.encode(text, add_special_tokens=False).ids
    whole: list[int] = tokenizer.encode(text).ids
    return whole[: whole.index(bare[0])] if bare else []
