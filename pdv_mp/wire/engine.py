"""Messages between the front and the workers that hold a scheduler, framed as wire/frames.py says.

Columns are int32 (ids, counts), int64 (request keys, durations) or float32 (log-probabilities).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pdv_mp.wire.frames import (
    ColumnReader,
    Float32Column,
    FrameCodec,
    Int32Column,
    Int64Column,
    Stamps,
    WireError,
    int32_column,
)

__all__ = [
    "Close",
    "EngineMessage",
    "EngineReady",
    "Finish",
    "Float32Column",
    "InfoReply",
    "InfoRequest",
    "Int32Column",
    "Int64Column",
    "LogprobColumns",
    "Open",
    "PromptLogprobs",
    "Stamps",
    "Tokens",
    "WireError",
    "decode",
    "encode",
    "engine_socket",
]


def engine_socket(generation: int, replica: int = 0) -> str:
    """File name, in the run directory, of the edge's socket to the scheduler of a replica, for one
    generation of the worker that holds it."""
    return f"engine-{replica}.{generation}"


class Finish(IntEnum):
    """Why a request ended, in a :class:`Tokens` message. ``FAILED``: the scheduler could not serve
    it. ``CONDEMNED``: it keeps killing the process that works on it."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    ABORT = 3
    FAILED = 4
    CONDEMNED = 5


@dataclass(slots=True, kw_only=True)
class Open:
    """Front to scheduler: admit a request. Uses one credit; its end gives the credit back.

    ``request``: the front's key, unique for its lifetime. ``sampling``: temperature, top_k, top_p,
    min_p, seed. ``stop_ids``: stop_token_ids, and the model's EOS ids unless ignored.
    ``logprobs``, ``prompt_logprobs``: alternatives to report beside each token's own
    log-probability, -1 for no report at all.
    ``timeline``: :meth:`pdv_mp.timeline.Timeline.pack` of the request so far.
    ``report_timeline``: every Tokens entry of this request carries its timeline.
    ``at_once``: somebody waits for each of its tokens; of others those between the first and the
    last may come a little later, several messages together.
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
    at_once: bool = True
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
            self.at_once,
        ]
        return fields, [np.ascontiguousarray(self.prompt_ids, np.int32)]

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> Open:
        *others, logprobs, prompt_logprobs, at_once = fields
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
            at_once=at_once,
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
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> Close:
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
    def take(cls, columns: ColumnReader, rows: int, alternatives: int) -> LogprobColumns:
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
    asked for it; the timeline's last state is ``verify>front.encode``, since the encoding of the
    first message that went with this one.
    ``messages``: entry number and text of those that FAILED or were CONDEMNED. ``logprobs``: one
    row for each of ``ids``; None if no request asked for them. ``emitted_ns``: when the scheduler
    had them, which may be some time before they were sent.
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
    emitted_ns: int = 0
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], list[npt.NDArray[Any]]]:
        columns: list[npt.NDArray[Any]] = [
            np.ascontiguousarray(column, np.int64) for column in (self.requests, self.queued_ns)
        ]
        numbers = (self.counts, self.drafted, self.accepted, self.finish, self.stop_ids)
        columns.append(int32_column(*numbers, self.cached, self.ids))
        sizes = None
        if self.logprobs is not None:
            sizes = [len(self.logprobs.chosen), len(self.logprobs.top)]
            columns += self.logprobs.columns()
        counts = [len(self.requests), len(self.ids)]
        return [*counts, self.timelines, self.messages, sizes, self.emitted_ns], columns

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> Tokens:
        entries, num_ids, timelines, messages, sizes, emitted_ns = fields
        requests, queued_ns = columns.int64(entries), columns.int64(entries)
        counts, drafted, accepted, finish, stop_ids, cached, ids = columns.int32s(
            *[entries] * 6, num_ids
        )
        return cls(
            requests=requests,
            queued_ns=queued_ns,
            counts=counts,
            drafted=drafted,
            accepted=accepted,
            finish=finish,
            stop_ids=stop_ids,
            cached=cached,
            ids=ids,
            timelines=[(entry, packed) for entry, packed in timelines],
            messages=[(entry, text) for entry, text in messages],
            logprobs=None if sizes is None else LogprobColumns.take(columns, *sizes),
            emitted_ns=emitted_ns,
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
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> PromptLogprobs:
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
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> EngineReady:
        (facts,) = fields
        return cls(facts=facts, stamps=stamps)


@dataclass(slots=True, kw_only=True)
class InfoRequest:
    """Front to scheduler: report counters, and so many of the last batches. ``number`` comes back
    with the answer."""

    kind: ClassVar[int] = 5
    number: int
    batches: int = 0
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], list[npt.NDArray[Any]]]:
        return [self.number, self.batches], []

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> InfoRequest:
        number, batches = fields
        return cls(number=number, batches=batches, stamps=stamps)


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
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> InfoReply:
        number, info = fields
        return cls(number=number, info=info, stamps=stamps)


EngineMessage = Open | Close | Tokens | PromptLogprobs | EngineReady | InfoRequest | InfoReply
CODEC: FrameCodec[EngineMessage] = FrameCodec(
    (Open, Close, Tokens, PromptLogprobs, EngineReady, InfoRequest, InfoReply)
)
encode = CODEC.encode
decode = CODEC.decode
