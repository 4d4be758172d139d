"""For whom drafts are made: whose prompts the draft reads, and how many tokens it drafts."""

from __future__ import annotations

from enum import Enum

import numpy as np

from pdv_mp.scheduling.columns import total
from pdv_mp.scheduling.kv_manager import KVManager
from pdv_mp.scheduling.sequences import Sequence, SequenceTable, Slots
from pdv_mp.speculation.draft_length.controller import Column, DecodeBatch, DraftLengthController
from pdv_mp.speculation.ngram import NGramIndex
from pdv_mp.stages.messages import USUALLY_FED

FILLED_IN_SILENCE = 4
"""Sequences that the draft is kept near to although nothing is drafted."""

NEAR = 64
"""Tokens that the draft lacks of those at most."""


class Drafting(Enum):
    """Where the drafts of a cycle are made."""

    NONE = "nowhere"
    HERE = "here"
    IN_LANE = "in a lane"


class DraftPlan:
    """Asks the controller of draft lengths, and knows what stands against its wishes."""

    def __init__(
        self,
        table: SequenceTable,
        kv: KVManager,
        controller: DraftLengthController,
        ngrams: NGramIndex | None,
        fills_all: bool,
    ) -> None:
        """``ngrams``: drafts are looked up here, and no stage makes them. ``fills_all``: whatever
        may be drafted for has its prompt in the draft's cache, too, since lanes hand KV on."""
        self._table = table
        self._kv = kv
        self.controller = controller
        self._ngrams = ngrams
        self._fills_all = fills_all

    def fills(self, sequence: Sequence) -> bool:
        """Whether a prompt goes into the draft's cache as well. While nothing is drafted, only a
        few do: those for which the controller can explore at little cost. What the verifier finds
        in the prefix cache and the draft does not is not computed again for the draft's sake.
        Where lanes hand KV on, all that may be drafted for do."""
        if not sequence.params.speculate or self._ngrams is not None:
            return False
        if self._fills_all:
            return True
        if not self.controller.length:
            table = self._table
            is_near = table.target_len - table.draft_len <= NEAR
            near = int((table.fills_draft & is_near).sum())
            if near == 0 or near >= FILLED_IN_SILENCE:
                return near == 0
        return not self._kv.verifier_knows_more(sequence)

    def lengths(
        self, slots: Slots, base: Column, drafting: Drafting, waiting: int
    ) -> tuple[Column, Column]:
        """How many tokens are drafted for each of the slots that are about to start a cycle, [B],
        and these tokens where they are looked up, [B, K]. ``waiting``: sequences that are ready
        and have no place in the batch."""
        table, controller, ngrams = self._table, self.controller, self._ngrams
        remaining: Column = table.max_len[slots] - base
        room = np.minimum(controller.max_length, remaining - 1)
        limits: Column = np.where(table.speculates[slots], room, 0)
        ids, kinds = np.zeros((len(slots), 0), np.int64), None
        if drafting is Drafting.NONE and ngrams is None:
            return np.zeros_like(limits), ids
        if not limits.any() or controller.passes():
            return np.zeros_like(limits), ids
        gaps = np.maximum(0, base - table.draft_len[slots] - USUALLY_FED)
        if ngrams is not None:
            ids, matched = ngrams.propose(table.tokens, slots, base, int(limits.max()))
            limits = np.where(matched > 0, limits, 0)
            kinds = np.maximum(0, matched - ngrams.least)
            gaps = np.zeros_like(gaps)
        reading = self._reading(slots)
        batch = DecodeBatch(slots, limits, base, remaining, gaps, waiting, kinds, reading)
        lengths = controller.choose(batch)
        return lengths, ids[:, : int(lengths.max())]

    def _reading(self, slots: Slots) -> float:
        """Tokens of prompts for each token that these sequences may get, if the draft reads them
        only because something is drafted: see :meth:`fills`."""
        if self._ngrams is not None or self._fills_all:
            return 0.0
        table = self._table
        slots = slots[table.speculates[slots]]
        if len(slots) <= FILLED_IN_SILENCE:
            return 0.0
        budget = total(table.budget[slots])
        read = total(table.max_len[slots]) - budget - total(table.cached[slots])
        return (1 - FILLED_IN_SILENCE / len(slots)) * read / budget
