"""Drafts without a model: what followed the last time that the text went as it goes now.

Of each text an index knows where every run of n tokens, n between a least and a most, was last
followed by something. The longest run that ends the text and was there before is looked up, and the
tokens that followed it are proposed. Where these reach the end of the text they go on as if it
repeated itself, so that a short loop gives a proposal of any length. The proposal is certain: its
law is one-hot.

An index grows with its text, by one entry per token and n, and keeps hashes of 64 bits: a collision
costs a bad guess. The hashes of all sequences of a batch are computed at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pdv_mp.config import SpeculationOptions
from pdv_mp.speculation.draft_length.controller import Column
from pdv_mp.speculative_config import ngram_of

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SALT = np.uint64(0xD1B54A32D192ED03)


class NGramDrafts(NamedTuple):
    """What may follow B texts. ``ids`` int64 [B, K]; all of a row or none of it counts. ``matched``
    int64 [B]: tokens of the run that was found, 0 where none was."""

    ids: npt.NDArray[np.int64]
    matched: Column


class NGramIndex:
    """The indices of ``num_slots`` texts, for runs of ``least`` to ``most`` tokens."""

    def __init__(self, num_slots: int, least: int, most: int) -> None:
        self.least, self.most = least, most
        self._starts: list[dict[int, int]] = [{} for _ in range(num_slots)]
        self._indexed = np.zeros(num_slots, np.int64)

    @property
    def num_kinds(self) -> int:
        """Lengths that a run may have."""
        return self.most - self.least + 1

    def forget(self, slot: int) -> None:
        """The slot has a new text."""
        self._starts[slot] = {}
        self._indexed[slot] = 0

    def propose(
        self, tokens: npt.NDArray[np.int32], slots: Column, lengths: Column, count: int
    ) -> NGramDrafts:
        """``count`` tokens that may follow ``tokens[slots[b], :lengths[b]]``.

        A text only grows between two calls. Its last token is indexed by the next call, since what
        follows it is not known yet.
        """
        starts, matched = self._find(tokens, slots, lengths)
        period = np.maximum(1, lengths - starts)
        columns = starts[:, None] + np.arange(count) % period[:, None]
        ids = tokens[slots[:, None], np.where(matched[:, None] > 0, columns, 0)]
        return NGramDrafts(ids.astype(np.int64), matched)

    def _find(
        self, tokens: npt.NDArray[np.int32], slots: Column, lengths: Column
    ) -> tuple[Column, Column]:
        """Bring the indices up to date and look up the ends of the texts: where what followed
        begins, and how long the run was that was found; both [B]."""
        indexed = self._indexed[slots]
        counts = lengths - indexed  # ends of runs: the new ones, and the text's own
        rows = np.repeat(np.arange(len(slots)), counts)
        first = np.cumsum(counts) - counts
        ends = np.arange(len(rows)) - first[rows] + indexed[rows]
        keys = self._keys(tokens, slots[rows], ends).tolist()
        starts, matched = np.zeros(len(slots), np.int64), np.zeros(len(slots), np.int64)
        bounds = zip(slots.tolist(), first.tolist(), counts.tolist(), indexed.tolist(), strict=True)
        for row, (slot, begin, number, position) in enumerate(bounds):
            known = self._starts[slot]
            for offset in range(number - 1):
                for key in keys[begin + offset][: max(0, position + offset + 2 - self.least)]:
                    known[key] = position + offset + 1
            length = position + number
            own = keys[begin + number - 1][: max(0, length + 1 - self.least)]
            for size, key in zip(range(self.least + len(own) - 1, 0, -1), own[::-1], strict=False):
                start = known.get(key)
                if start is not None:
                    starts[row], matched[row] = start, size
                    break
        self._indexed[slots] = lengths - 1
        return starts, matched

    def _keys(
        self, tokens: npt.NDArray[np.int32], slots: Column, ends: Column
    ) -> npt.NDArray[np.uint64]:
        """Hashes of the runs of ``least`` .. ``most`` tokens up to and with ``ends``: [N, sizes].
        Those that would begin before the text are of no use."""
        keys = np.empty((len(ends), self.most - self.least + 1), np.uint64)
        hashes = np.full(len(ends), _SALT)
        for size in range(1, self.most + 1):
            token = tokens[slots, np.maximum(0, ends + 1 - size)].astype(np.uint64)
            hashes = (hashes ^ (token + np.uint64(1))) * _FACTOR
            hashes ^= hashes >> np.uint64(29)
            if size >= self.least:
                keys[:, size - self.least] = hashes
        return keys


def make_index(options: SpeculationOptions, num_slots: int) -> NGramIndex | None:
    """The index that ``--speculative-config`` asks for, if it does."""
    found = ngram_of(options)
    return None if found is None else NGramIndex(num_slots, found.least, found.most)
