"""Frames between our own processes: a fixed header, a few fields, then columns.

    kind u8 | 3 bytes zero | generation u32 | fields length u32 | encode_ns i64 | sent_ns i64

are followed by a msgpack array of fields (no keys) and the columns' bytes. All numbers are
little-endian. ``encode_ns`` is when the building of the message began; ``sent_ns`` is written last,
right before the frame is handed to the socket, so that the receiver can tell encoding from
transport. The lengths of the columns are given by the fields and checked against the frame's.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import msgpack
import numpy as np
import numpy.typing as npt

Float32Column = npt.NDArray[np.float32]
Float64Column = npt.NDArray[np.float64]
Uint8Column = npt.NDArray[np.uint8]
Int32Column = npt.NDArray[np.int32]
Int64Column = npt.NDArray[np.int64]

_UINT8, _INT32, _INT64, _FLOAT32, _FLOAT64 = map(np.dtype, ("u1", "<i4", "<i8", "<f4", "<f8"))

HEADER = struct.Struct("<B3xIIqq")
_SENT = struct.Struct("<q")
_SENT_OFFSET = HEADER.size - _SENT.size

Message = TypeVar("Message")


class WireError(ValueError):
    """A frame between our own processes is damaged or of another version."""


@dataclass(slots=True)
class Stamps:
    """When a frame was built, sent, received and decoded (ns, monotonic), and its bytes."""

    encode_ns: int = 0
    sent_ns: int = 0
    received_ns: int = 0
    decoded_ns: int = 0
    size: int = 0


class BatchStamps(NamedTuple):
    """A batch of a process: picked from its inbox, started, results known (ns, monotonic)."""

    picked_ns: int
    started_ns: int
    ended_ns: int


class ColumnReader:
    """Cuts columns off the end of a frame, checking that it is long enough."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._offset = 0

    def uint8(self, length: int) -> Uint8Column:
        """The next ``length`` bytes."""
        return self._take(length, _UINT8)

    def int32(self, length: int) -> Int32Column:
        """The next ``length`` numbers of four bytes."""
        return self._take(length, _INT32)

    def int32s(self, *lengths: int) -> list[Int32Column]:
        """The next columns of such numbers, read at once."""
        return _cut(self._take(sum(lengths), _INT32), lengths)

    def widened(self, *lengths: int) -> list[Int64Column]:
        """The same, copied to numbers of eight bytes."""
        return _cut(self._take(sum(lengths), _INT32).astype(np.int64), lengths)

    def float32(self, length: int) -> Float32Column:
        """The next ``length`` single precision numbers."""
        return self._take(length, _FLOAT32)

    def float64(self, length: int) -> Float64Column:
        """The next ``length`` double precision numbers."""
        return self._take(length, _FLOAT64)

    def int64(self, length: int) -> Int64Column:
        """The next ``length`` numbers of eight bytes."""
        return self._take(length, _INT64)

    def _take(self, length: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        end = self._offset + length * dtype.itemsize
        if length < 0 or end > len(self._buffer):
            raise _unfit(length)
        column = np.frombuffer(self._buffer, dtype, length, self._offset)
        self._offset = end
        return column

    def finish(self) -> None:
        """Raise WireError if something is left."""
        if self._offset != len(self._buffer):
            raise WireError(f"{len(self._buffer) - self._offset} bytes too many in a frame")


def _cut(column: npt.NDArray[Any], lengths: Sequence[int]) -> list[npt.NDArray[Any]]:
    parts, end = [], 0
    for length in lengths:
        if length < 0:
            raise _unfit(length)
        start, end = end, end + length
        parts.append(column[start:end])
    return parts


def _unfit(length: int) -> WireError:
    return WireError(f"a column of {length} numbers does not fit its frame")


def int32_column(*columns: npt.NDArray[Any]) -> Int32Column:
    """Columns of whole numbers, [n] each, as one: their numbers follow each other in a frame."""
    return np.concatenate(columns, dtype=np.int32, casting="same_kind")


class FrameCodec(Generic[Message]):
    """Encodes and decodes the messages of one kind of edge.

    Each type has a number ``kind``, a field ``stamps``, ``_fields()``, which gives the msgpack
    fields and the columns, and ``_from(fields, columns, stamps)``, which takes them back.
    """

    def __init__(self, types: Iterable[type[Any]]) -> None:
        self._types: dict[int, Any] = {}
        for message in types:
            if message.kind in self._types:
                other = self._types[message.kind].__name__
                raise ValueError(f"{message.__name__} has the number of {other}, {message.kind}")
            self._types[message.kind] = message

    @property
    def types(self) -> tuple[type[Any], ...]:
        """The messages of this edge."""
        return tuple(self._types.values())

    def encode(self, message: Message, generation: int, encode_ns: int | None = None) -> bytearray:
        """The frame of a message; its ``sent_ns`` is now, so hand it to the socket at once."""
        started = time.monotonic_ns() if encode_ns is None else encode_ns
        fields, columns = message._fields()  # type: ignore[attr-defined]
        packed = msgpack.packb(fields)
        kind = message.kind  # type: ignore[attr-defined]
        frame = bytearray(HEADER.pack(kind, generation, len(packed), started, 0))
        frame += packed
        for column in columns:
            frame += column.tobytes()
        _SENT.pack_into(frame, _SENT_OFFSET, time.monotonic_ns())
        return frame

    def decode(self, frame: bytes, received_ns: int) -> tuple[Message, int]:
        """A frame's message and generation. Raises WireError for a damaged frame."""
        if len(frame) < HEADER.size:
            raise WireError(f"a frame of {len(frame)} bytes is shorter than its header")
        kind, generation, length, encode_ns, sent_ns = HEADER.unpack_from(frame)
        view = memoryview(frame)
        if kind not in self._types:
            raise WireError(f"unknown kind of message {kind}")
        end = HEADER.size + length
        if end > len(frame):
            raise WireError("a frame is shorter than its fields")
        stamps = Stamps(encode_ns, sent_ns, received_ns, size=len(frame))
        columns = ColumnReader(view[end:])
        try:
            message: Message = self._types[kind]._from(
                msgpack.unpackb(view[HEADER.size : end]), columns, stamps
            )
        except (ValueError, TypeError, OverflowError) as error:
            name = self._types[kind].__name__
            raise WireError(f"a {name} message is damaged: {error}") from error
        columns.finish()
        stamps.decoded_ns = time.monotonic_ns()
        return message, generation
