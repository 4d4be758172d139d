"""Log-probabilities on their way from the engine's columns to the clients' messages."""

from __future__ import annotations

import numpy as np

from pdv_mp.wire.engine import LogprobColumns
from pdv_mp.wire.logprobs import pack_logprobs
from pdv_mp.wire.protocol import PackedList


class LogprobReader:
    """Encodes rows of one engine message; all rows that are taken together belong to one request,
    which asked for them."""

    def __init__(self, columns: LogprobColumns) -> None:
        self._columns = columns
        tops = np.cumsum(np.maximum(columns.widths, 0))
        self._top_starts = np.concatenate((np.zeros(1, np.int64), tops))

    def pack(self, ids: list[int], start: int) -> PackedList:
        """The entries of the tokens ``ids``, whose rows begin with ``start``."""
        if not ids:
            return PackedList()
        columns, end = self._columns, start + len(ids)
        tops = slice(self._top_starts[start], self._top_starts[end])
        shape = (len(ids), int(columns.widths[start]))
        return pack_logprobs(
            ids,
            columns.chosen[start:end],
            columns.top_ids[tops].reshape(shape),
            columns.top[tops].reshape(shape),
        )
