"""Messages between the front and the worker that holds the scheduler: ids travel in columns.

A frame is a fixed header, then a msgpack array of fields (no keys), then the columns' bytes:

    kind u8 | 3 bytes zero | generation u32 | fields length u32 | encode_ns i64 | sent_ns i64

All numbers are little-endian. ``encode_ns`` is when the building of the message began; ``sent_ns``
is written last, right before the frame is handed to the socket, so that the receiver can tell
encoding from transport. Columns are int32 (ids, counts) or int64 (request keys, durations), their
lengths given by the fields before them and checked against the frame's length.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar

import msgpack
import numpy as np
import numpy.typing as npt

Float32Column = npt.NDArray[np.float32]
Int32Column = npt.NDArray[np.int32]
Int64Column = npt.NDArray[np.int64]

_HEADER = struct.Struct("<B3xIIqq")
_SENT = struct.Struct("<q")
_SENT_OFFSET = _HEADER.size - _SENT.size


def engine_socket(generation: int) -> str:
    """File name, in the run directory, of the edge's socket for one generation of its worker."""
    return f"engine-0.{generation}"


class WireError(ValueError):
    """A frame between our own processes is damaged or of another version."""


class Finish(IntEnum):
    """Why a request ended, in a :class:`Tokens` message."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    ABORT = 3
    FAILED = 4


@dataclass(slots=True)
class Stamps:
    """When a frame was built, sent, received and decoded (ns, monotonic)."""

    encode_ns: int = 0
    sent_ns: int = 0
    received_ns: int = 0
    decoded_ns: int = 0


@dataclass(slots=True, kw_only=True)
class Open:
    """Front to scheduler: admit a request. Uses one credit; its end gives the credit back.

    ``request``: the front's key, unique for its lifetime. ``sampling``: temperature, top_k, top_p,
    min_p, seed. ``stop_ids``: stop_token_ids, and the model's EOS ids unless ignored.
    ``logprobs``, ``prompt_logprobs``: alternatives to report beside each token's own
    log-probability, -1 for no report at all.
    ``timeline``: :meth:`pdv_mp.timeline.Timeline.pack` of the request so far.
    ``report_timeline``: every Tokens entry of this request carries its timeline.
    """

    kind: ClassVar[int] = 1
    request: int
    prompt_ids: Int32Column
    max_tokens: int
    sampling: tuple[float, int, float, float, int]
    stop_ids: tuple[int, ...]
    speculate: bool
    report_timeline: bool
    timeline: list[Any]
    logprobs: int = -1
    prompt_logprobs: int = -1
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], list[npt.NDArray[Any]]]:
        fields = [
            self.request,
            len(self.prompt_ids),
            self.max_tokens,
            list(self.sampling),
            list(self.stop_ids),
            self.speculate,
            self.report_timeline,
            self.timeline,
            self.logprobs,
            self.prompt_logprobs,
        ]
        return fields, [np.ascontiguousarray(self.prompt_ids, np.int32)]

    @classmethod
    def _from(cls, fields: list[Any], columns: _Columns, stamps: Stamps) -> Open:
        *others, logprobs, prompt_logprobs = fields
        request, length, max_tokens, sampling, stop_ids, speculate, report, timeline = others
        temperature, top_k, top_p, min_p, seed = sampling
        return cls(
            request=request,
            prompt_ids=columns.int32(length),
            max_tokens=max_tokens,
            sampling=(temperature, top_k, top_p, min_p, seed),
            stop_ids=tuple(stop_ids),
            speculate=speculate,
            report_timeline=report,
            timeline=timeline,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            stamps=stamps,
        )


@dataclass(slots=True, kw_only=True)
class Close:
    """Front to scheduler: end these requests. Each is answered by a finishing Tokens entry,
    unless that was already on its way."""

    kind: ClassVar[int] = 2
    requests: Int64Column
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], list[npt.NDArray[Any]]]:
        return [len(self.requests)], [np.ascontiguousarray(self.requests, np.int64)]

    @classmethod
    def _from(cls, fields: list[Any], columns: _Columns, stamps: Stamps) -> Close:
        (length,) = fields
        return cls(requests=columns.int64(length), stamps=stamps)


@dataclass(frozen=True, slots=True)
class LogprobColumns:
    """Log-probabilities of R tokens, in the model's own distribution.

    ``chosen`` float32 [R]: of the tokens themselves. ``widths`` int32 [R]: how many alternatives
    each has, -1 where none of this was asked for. ``top_ids`` int32, ``top`` float32, row after
    row: the most probable ids, best first, and their log-probabilities.
    """

    chosen: Float32Column
    widths: Int32Column
    top_ids: Int32Column
    top: Float32Column

    def columns(self) -> list[npt.NDArray[Any]]:
        """The columns in the order in which a frame holds them."""
        return [
            np.ascontiguousarray(self.chosen, np.float32),
            np.ascontiguousarray(self.widths, np.int32),
            np.ascontiguousarray(self.top_ids, np.int32),
            np.ascontiguousarray(self.top, np.float32),
        ]

    @classmethod
    def take(cls, columns: _Columns, rows: int, alternatives: int) -> LogprobColumns:
        """Cut them off a frame."""
        return cls(
            columns.float32(rows),
            columns.int32(rows),
            columns.int32(alternatives),
            columns.float32(alternatives),
        )


@dataclass(slots=True, kw_only=True)
class Tokens:
    """Scheduler to front: what one cycle emitted, one entry per request, in columns.

    ``counts``: how many of ``ids`` (flat) belong to each entry. ``drafted``, ``accepted``: draft
    tokens proposed in the cycle and those that matched, before any cut; the first
    min(accepted, count) ids of an entry were draft tokens. ``finish``: :class:`Finish`.
    ``stop_ids``: the id that stopped the request, -1 if none did. ``cached``: prompt tokens that
    came from a prefix cache. ``queued_ns``: how long the request waited here for a slot and KV
    room. ``timelines``: entry number and packed timeline of the requests that
    asked for it; the timeline's last state is ``verify>front.encode`` since ``encode_ns``.
    ``messages``: entry number and text for FAILED entries. ``logprobs``: one row for each of
    ``ids``; None if no request asked for them.
    """

    kind: ClassVar[int] = 3
    requests: Int64Column
    queued_ns: Int64Column
    counts: Int32Column
    drafted: Int32Column
    accepted: Int32Column
    finish: Int32Column
    stop_ids: Int32Column
    cached: Int32Column
    ids: Int32Column
    timelines: list[tuple[int, list[Any]]] = field(default_factory=list)
    messages: list[tuple[int, str]] = field(default_factory=list)
    logprobs: LogprobColumns | None = None
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], list[npt.NDArray[Any]]]:
        columns: list[npt.NDArray[Any]] = [
            np.ascontiguousarray(column, np.int64) for column in (self.requests, self.queued_ns)
        ]
        columns += [
            np.ascontiguousarray(column, np.int32)
            for column in (
                self.counts,
                self.drafted,
                self.accepted,
                self.finish,
                self.stop_ids,
                self.cached,
                self.ids,
            )
        ]
        sizes = None
        if self.logprobs is not None:
            sizes = [len(self.logprobs.chosen), len(self.logprobs.top)]
            columns += self.logprobs.columns()
        fields = [len(self.requests), len(self.ids), self.timelines, self.messages, sizes]
        return fields, columns

    @classmethod
    def _from(cls, fields: list[Any], columns: _Columns, stamps: Stamps) -> Tokens:
        entries, num_ids, timelines, messages, sizes = fields
        return cls(
            requests=columns.int64(entries),
            queued_ns=columns.int64(entries),
            counts=columns.int32(entries),
            drafted=columns.int32(entries),
            accepted=columns.int32(entries),
            finish=columns.int32(entries),
            stop_ids=columns.int32(entries),
            cached=columns.int32(entries),
            ids=columns.int32(num_ids),
            timelines=[(entry, packed) for entry, packed in timelines],
            messages=[(entry, text) for entry, text in messages],
            logprobs=None if sizes is None else LogprobColumns.take(columns, *sizes),
            stamps=stamps,
        )


@dataclass(slots=True, kw_only=True)
class PromptLogprobs:
    """Scheduler to front: log-probabilities of a part of a request's prompt.

    They belong to the prompt tokens from ``start`` on (``start`` >= 1; the first token has none).
    All parts of a prompt come, in order, before the request's first :class:`Tokens`.
    """

    kind: ClassVar[int] = 7
    request: int
    start: int
    logprobs: LogprobColumns
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], list[npt.NDArray[Any]]]:
        sizes = [len(self.logprobs.chosen), len(self.logprobs.top)]
        return [self.request, self.start, *sizes], self.logprobs.columns()

    @classmethod
    def _from(cls, fields: list[Any], columns: _Columns, stamps: Stamps) -> PromptLogprobs:
        request, start, rows, alternatives = fields
        return cls(
            request=request,
            start=start,
            logprobs=LogprobColumns.take(columns, rows, alternatives),
            stamps=stamps,
        )


@dataclass(slots=True, kw_only=True)
class EngineReady:
    """Scheduler to front, once after start: the facts that the worker decided.

    ``facts``: ``fingerprint`` (of the configuration), ``vocab_size``, ``eos_ids``,
    ``max_model_len``, ``max_request_tokens`` (most tokens of prompt and output that the KV pools
    can hold for one request), ``credits`` (requests that may be open at the scheduler), ``model``,
    ``draft_model`` (names), ``device``, ``dtype``, ``kv_blocks``, ``block_size``.
    """

    kind: ClassVar[int] = 4
    facts: dict[str, Any]
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], list[npt.NDArray[Any]]]:
        return [self.facts], []

    @classmethod
    def _from(cls, fields: list[Any], columns: _Columns, stamps: Stamps) -> EngineReady:
        (facts,) = fields
        return cls(facts=facts, stamps=stamps)


@dataclass(slots=True, kw_only=True)
class InfoRequest:
    """Front to scheduler: report counters. ``number`` comes back with the answer."""

    kind: ClassVar[int] = 5
    number: int
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], list[npt.NDArray[Any]]]:
        return [self.number], []

    @classmethod
    def _from(cls, fields: list[Any], columns: _Columns, stamps: Stamps) -> InfoRequest:
        (number,) = fields
        return cls(number=number, stamps=stamps)


@dataclass(slots=True, kw_only=True)
class InfoReply:
    """Scheduler to front: ``info`` has ``stages``, ``pools``, ``counters`` and ``batches``."""

    kind: ClassVar[int] = 6
    number: int
    info: dict[str, Any]
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], list[npt.NDArray[Any]]]:
        return [self.number, self.info], []

    @classmethod
    def _from(cls, fields: list[Any], columns: _Columns, stamps: Stamps) -> InfoReply:
        number, info = fields
        return cls(number=number, info=info, stamps=stamps)


EngineMessage = Open | Close | Tokens | PromptLogprobs | EngineReady | InfoRequest | InfoReply
_TYPES: dict[int, Any] = {
    message.kind: message
    for message in (Open, Close, Tokens, PromptLogprobs, EngineReady, InfoRequest, InfoReply)
}


class _Columns:
    """Cuts columns off the end of a frame, checking that it is long enough."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._offset = 0

    def int32(self, length: int) -> Int32Column:
        return self._take(length, np.dtype("<i4"))

    def float32(self, length: int) -> Float32Column:
        return self._take(length, np.dtype("<f4"))

    def int64(self, length: int) -> Int64Column:
        return self._take(length, np.dtype("<i8"))

    def _take(self, length: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        end = self._offset + length * dtype.itemsize
        if length < 0 or end > len(self._buffer):
            raise WireError(f"a column of {length} numbers does not fit its frame")
        column = np.frombuffer(self._buffer[self._offset : end], dtype)
        self._offset = end
        return column

    def finish(self) -> None:
        if self._offset != len(self._buffer):
            raise WireError(f"{len(self._buffer) - self._offset} bytes too many in a frame")


def encode(message: EngineMessage, generation: int, encode_ns: int | None = None) -> bytearray:
    """The frame of a message; its ``sent_ns`` is now, so hand it to the socket at once."""
    started = time.monotonic_ns() if encode_ns is None else encode_ns
    fields, columns = message._fields()
    packed = msgpack.packb(fields)
    frame = bytearray(_HEADER.pack(message.kind, generation, len(packed), started, 0))
    frame += packed
    for column in columns:
        frame += column.tobytes()
    _SENT.pack_into(frame, _SENT_OFFSET, time.monotonic_ns())
    return frame


def decode(frame: bytes, received_ns: int) -> tuple[EngineMessage, int]:
    """A frame's message and generation. Raises WireError for a damaged frame."""
    if len(frame) < _HEADER.size:
        raise WireError(f"a frame of {len(frame)} bytes is shorter than its header")
    kind, generation, length, encode_ns, sent_ns = _HEADER.unpack_from(frame)
    view = memoryview(frame)
    if kind not in _TYPES:
        raise WireError(f"unknown kind of message {kind}")
    end = _HEADER.size + length
    if end > len(frame):
        raise WireError("a frame is shorter than its fields")
    stamps = Stamps(encode_ns, sent_ns, received_ns)
    columns = _Columns(view[end:])
    try:
        message: EngineMessage = _TYPES[kind]._from(
            msgpack.unpackb(view[_HEADER.size : end]), columns, stamps
        )
    except (ValueError, TypeError) as error:
        raise WireError(f"a {_TYPES[kind].__name__} message is damaged: {error}") from error
    columns.finish()
    stamps.decoded_ns = time.monotonic_ns()
    return message, generation
