"""The interface of what decides how many tokens are drafted in a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.int64]


class DecodeBatch(NamedTuple):
    """The sequences of a cycle that is about to start, B of them.

    ``slots`` [B]. ``limits`` [B]: most tokens that each may have drafted: 0 for those that do not
    speculate, and never more than its budget leaves room for. ``contexts`` [B]: tokens of each so
    far. ``remaining`` [B]: tokens that each may still get. ``gaps`` [B]: tokens whose rows the
    draft's cache lacks because of cycles without drafts. ``waiting``: sequences that are ready and
    have no place in the batch. ``kinds`` [B]: of which kind each one's drafts would be, where there
    are several, else None. ``reading``: tokens of prompts that the draft reads, for each token that
    these sequences may get, because something is drafted, and would not read otherwise.
    """

    slots: Column
    limits: Column
    contexts: Column
    remaining: Column
    gaps: Column
    waiting: int = 0
    kinds: Column | None = None
    reading: float = 0.0


class CycleTimes(NamedTuple):
    """What a cycle took.

    ``sequences``, ``rows``, ``context``: those of the verification: sequences, tokens fed, and
    tokens of all sequences before them. ``drafting``, ``steps``, ``fed``: sequences and forwards of
    the draft, and tokens fed to its first forward that earlier cycles had left out; all 0 in a
    cycle without drafts. ``draft_ns``: from the order to the proposal, on the way of the tokens.
    ``verify_ns``: from the proposal to the verdict. ``overhead_ns``: from the verdict before to
    this cycle's order, None where other work came between.
    """

    sequences: int
    rows: int
    context: int
    verify_ns: int
    drafting: int = 0
    steps: int = 0
    fed: int = 0
    draft_ns: int = 0
    overhead_ns: int | None = None


@dataclass(slots=True)
class Decisions:
    """What a controller has decided so far.

    ``lengths``: cycles by the length decided for them. ``switches``: changes of the length.
    ``explorations``: cycles that drafted only to learn. ``trials``: lengths tried because their
    cost was not known.
    """

    lengths: dict[int, int] = field(default_factory=dict)
    switches: int = 0
    explorations: int = 0
    trials: int = 0

    def count(self, length: int) -> None:
        """One cycle more."""
        self.lengths[length] = self.lengths.get(length, 0) + 1

    def as_dict(self) -> dict[str, Any]:
        """By name; lengths as text, since msgpack's maps have text keys."""
        return {
            "lengths": {str(length): count for length, count in sorted(self.lengths.items())},
            "switches": self.switches,
            "explorations": self.explorations,
            "trials": self.trials,
        }


class DraftLengthController(Protocol):
    """Decides the draft lengths of each cycle. Nothing that it does can change a text, only when
    it arrives (with ``--acceptance rejection``: only which sample of the same law it is)."""

    name: str
    max_length: int
    decisions: Decisions

    def choose(self, batch: DecodeBatch) -> Column:
        """Tokens to draft for each sequence, int64 [B], between 0 and its limit."""

    def passes(self) -> bool:
        """Whether nothing is drafted in the next cycle, whatever could be: it is counted, and
        :meth:`choose` need not be asked."""

    def judged(self, slots: Column, lengths: Column, accepted: Column) -> None:
        """Of ``lengths`` [B] drafts the first ``accepted`` [B] were kept."""

    def timed(self, times: CycleTimes) -> None:
        """A cycle is over."""

    def rehearsed(self, times: Sequence[CycleTimes], read_ns: float = 0.0) -> None:
        """What cycles of uniform batches took before anything was served, and what a token costs
        of a prompt that the draft reads (0 if that is not known)."""

    def forget(self, slot: int) -> None:
        """The slot has a new owner."""

    @property
    def length(self) -> int:
        """The length that it holds to be right at present."""

    @property
    def acceptance(self) -> float:
        """The probability with which it expects a draft token to be kept."""
