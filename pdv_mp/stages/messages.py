"""What stages hand to each other, in columns: slots and token ids, never tensors.

Every entry carries the committed length it builds on (``base``), so that one that has become stale
can be recognised by whoever receives it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """Chunks of prompts: ``lengths[b]`` tokens of slot ``slots[b]`` from position ``starts[b]``.

    ``finishes`` marks the chunks that complete their prompt.
    """

    slots: Column
    starts: Column
    lengths: Column
    finishes: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Prompts that are in the caches, with the first token that the verifier gives each."""

    slots: Column
    next_ids: Column


@dataclass(frozen=True, slots=True)
class DraftOrder:
    """Propose ``lengths[b]`` >= 1 tokens for slot ``slots[b]`` after ``base[b]`` committed ones."""

    slots: Column
    base: Column
    lengths: Column


@dataclass(frozen=True, slots=True)
class Proposal:
    """``ids[b, :lengths[b]]`` may follow the ``base[b]`` committed tokens; a length may be 0.

    ``ids`` is [B, K], int64, padded with -1.
    """

    slots: Column
    base: Column
    lengths: Column
    ids: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a proposal: its first ``accepted[b]`` ids hold, then ``next_ids[b]`` follows.

    ``next_ids`` is the correction at the first mismatch, or the bonus token after a full match.
    """

    proposal: Proposal
    accepted: Column
    next_ids: Column
