"""Messages between the front and the processes that tokenize, framed as wire/frames.py says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pdv_mp.wire.frames import (
    BatchStamps,
    ColumnReader,
    FrameCodec,
    Int32Column,
    Int64Column,
    Stamps,
    Uint8Column,
    WireError,
)

__all__ = [
    "CODEC",
    "FAILED",
    "Ids",
    "Texts",
    "TokenizerMessage",
    "TokenizerReady",
    "WireError",
    "decode",
    "encode",
    "tokenizer_socket",
]

FAILED = -1
"""The count of a text that could not be tokenized."""


def tokenizer_socket(name: str, generation: int) -> str:
    """File name, in the run directory, of the edge's socket, for one generation of the process."""
    return f"{name}.{generation}"


@dataclass(slots=True, kw_only=True)
class Texts:
    """Front to tokenizer: tokenize these texts. Each is answered once, in :class:`Ids`.

    ``keys`` int64 [n]: the front's own, never used twice. ``sizes`` int64 [n]: bytes of each text.
    ``data`` uint8: the texts in UTF-8, one after the other. ``bare`` uint8 [n]: 1 for a text to
    which the tokenizer's own template adds nothing.
    """

    kind: ClassVar[int] = 49
    keys: Int64Column
    sizes: Int64Column
    data: Uint8Column
    bare: Uint8Column
    stamps: Stamps = field(default_factory=Stamps)

    @classmethod
    def of(cls, keys: Iterable[int], texts: list[bytes], bare: Iterable[bool] = ()) -> Texts:
        """The message for texts in UTF-8; without ``bare`` none is."""
        marks = np.array(list(bare) or [False] * len(texts), np.uint8)
        return cls(
            keys=np.array(list(keys), np.int64),
            sizes=np.array([len(text) for text in texts], np.int64),
            data=np.frombuffer(b"".join(texts), np.uint8),
            bare=marks,
        )

    def split(self) -> list[bytes]:
        """The texts."""
        data, ends = self.data.tobytes(), np.cumsum(self.sizes).tolist()
        starts = [0, *ends]
        return [data[start:end] for start, end in zip(starts, ends, strict=False)]

    def _fields(self) -> tuple[list[Any], list[npt.NDArray[Any]]]:
        columns = [np.ascontiguousarray(column, np.int64) for column in (self.keys, self.sizes)]
        return [len(self.keys), len(self.data)], [*columns, self.data, self.bare]

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> Texts:
        entries, size = fields
        message = cls(
            keys=columns.int64(entries),
            sizes=columns.int64(entries),
            data=columns.uint8(size),
            bare=columns.uint8(entries),
            stamps=stamps,
        )
        if (message.bare > 1).any():
            raise WireError("a mark of a text is neither 0 nor 1")
        if sum(message.sizes.tolist()) != size or (message.sizes < 0).any():
            raise WireError("the sizes of the texts are not those of the data")
        return message


@dataclass(slots=True, kw_only=True)
class Ids:
    """Tokenizer to front: the ids of a batch of texts.

    ``keys`` int64 [n]. ``counts`` int32 [n]: ids of each text, :data:`FAILED` for one that could
    not be tokenized. ``ids`` int32: of all texts, one after the other. ``batch``: its stamps.
    ``orders`` int64 [n, 4]: stamps of the message that brought each text: encode, sent, received,
    decoded. ``busy_ns`` int64 [n]: how long, of the time that each waited since, this process
    tokenized others.
    """

    kind: ClassVar[int] = 50
    keys: Int64Column
    counts: Int32Column
    ids: Int32Column
    batch: BatchStamps
    orders: Int64Column
    busy_ns: Int64Column
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], list[npt.NDArray[Any]]]:
        batch = [self.batch.picked_ns, self.batch.started_ns, self.batch.ended_ns]
        columns: list[npt.NDArray[Any]] = [
            np.ascontiguousarray(column, np.int64)
            for column in (self.keys, self.orders, self.busy_ns)
        ]
        columns += [np.ascontiguousarray(column, np.int32) for column in (self.counts, self.ids)]
        return [len(self.keys), len(self.ids), *batch], columns

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> Ids:
        entries, num_ids, picked_ns, started_ns, ended_ns = fields
        message = cls(
            keys=columns.int64(entries),
            orders=columns.int64(4 * entries).reshape(entries, 4),
            busy_ns=columns.int64(entries),
            counts=columns.int32(entries),
            ids=columns.int32(num_ids),
            batch=BatchStamps(picked_ns, started_ns, ended_ns),
            stamps=stamps,
        )
        counts = message.counts
        if (counts < FAILED).any() or sum(counts[counts > 0].tolist()) != num_ids:
            raise WireError("the counts are not those of the ids")
        return message


@dataclass(slots=True, kw_only=True)
class TokenizerReady:
    """Tokenizer to front, once after start. ``facts``: ``fingerprint`` (of the configuration),
    ``processes``: its process id by name."""

    kind: ClassVar[int] = 48
    facts: dict[str, Any]
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], list[npt.NDArray[Any]]]:
        return [self.facts], []

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> TokenizerReady:
        (facts,) = fields
        return cls(facts=facts, stamps=stamps)


TokenizerMessage = TokenizerReady | Texts | Ids
CODEC: FrameCodec[TokenizerMessage] = FrameCodec((TokenizerReady, Texts, Ids))
encode = CODEC.encode
decode = CODEC.decode
