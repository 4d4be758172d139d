"""KV rows as a part of messages between a scheduler's worker and its lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pdv_mp.stages.kv_rows import KVBuffer, KVRows
from pdv_mp.wire.frames import ColumnReader


def rows_fields(rows: Sequence[KVRows]) -> list[Any]:
    """What is known of each, for the msgpack fields; contents come as columns."""
    return [[part.slot, part.role, part.tokens, _place(part.content)] for part in rows]


def _place(content: npt.NDArray[np.uint8] | KVBuffer) -> Any:
    if isinstance(content, KVBuffer):
        buffer = content
        return [
            buffer.number,
            buffer.pid,
            buffer.fd,
            buffer.inode,
            buffer.nbytes,
            buffer.ipc,
        ]
    return len(content)


def rows_columns(rows: Sequence[KVRows]) -> list[npt.NDArray[Any]]:
    """The contents of those that carry theirs."""
    return [part.content for part in rows if not isinstance(part.content, KVBuffer)]


def take_rows(fields: Sequence[Any], columns: ColumnReader) -> tuple[KVRows, ...]:
    """The inverse of both. Contents are views of the frame, which they keep alive."""
    rows = []
    for slot, role, tokens, place in fields:
        content = columns.uint8(place) if isinstance(place, int) else KVBuffer(*place)
        rows.append(KVRows(slot, role, tokens, content))
    return tuple(rows)
