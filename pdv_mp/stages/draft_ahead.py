"""Draft-ahead: the draft goes on while its proposal is judged, as if all of it were accepted.

The guess holds for a sequence if its next order lacks exactly the last draft token and the token
that was guessed to follow it (the verifier's own, after a full acceptance). Otherwise it is thrown
away: its rows lie above the sequence's and are overwritten before they are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pdv_mp.stages.messages import Column, DraftOrder, Proposal


@dataclass(slots=True)
class Ahead:
    """Guesses beyond a proposal, of B sequences.

    ``base``: committed tokens if the guess holds. ``last``: the last draft token of the proposal,
    which was not fed. ``guesses`` [B, N]: the first is to be the verifier's own token, the others
    are drafts after it; the last one has not been fed. ``wanted``: guesses to make.
    """

    slots: Column
    base: Column
    last: Column
    guesses: Column
    wanted: int

    @classmethod
    def after(cls, proposal: Proposal, capacity: Column) -> Ahead | None:
        """Of those sequences of a proposal whose caches have room for as many drafts again;
        ``capacity`` [B]: rows for which each slot has room. None if there is none."""
        width = proposal.ids.shape[1]
        base = proposal.base + proposal.lengths + 1
        rows = np.flatnonzero((proposal.lengths == width) & (base + width <= capacity))
        if len(rows) == 0:
            return None
        return cls(
            slots=proposal.slots[rows],
            base=base[rows],
            last=proposal.ids[rows, width - 1],
            guesses=np.zeros((len(rows), 0), np.int64),
            wanted=width + 1,
        )

    @property
    def is_complete(self) -> bool:
        """Whether as many are guessed as an order could use."""
        return bool(self.guesses.shape[1] >= self.wanted)

    def found(self, order: DraftOrder) -> list[Column]:
        """By entry of an order, the drafts that were guessed for it; empty where the guess does not
        hold, or had no draft yet."""
        nothing = np.zeros(0, np.int64)
        entry = {int(slot): row for row, slot in enumerate(self.slots)}
        ends = np.cumsum(order.base - order.starts)
        found = []
        for index, slot in enumerate(order.slots.tolist()):
            row, end = entry.get(slot), int(ends[index])
            fed = order.ids[end - int(order.base[index] - order.starts[index]) : end].tolist()
            if row is not None and order.base[index] == self.base[row] and self._holds(row, fed):
                found.append(self.guesses[row, 1 : 1 + int(order.lengths[index])])
            else:
                found.append(nothing)
        return found

    def _holds(self, row: int, fed: list[int]) -> bool:
        if self.guesses.shape[1] == 0:
            return False
        return fed == [int(self.last[row]), int(self.guesses[row, 0])]
