"""Messages between the scheduler's worker and its lanes, framed as wire/frames.py says.

They carry the columns of stages/messages.py, slots, lengths and ids as int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pdv_mp.lanes.stamps import BatchStamps
from pdv_mp.speculation.sampling import SamplingColumns
from pdv_mp.stages.kv_rows import KVRows
from pdv_mp.stages.messages import (
    DraftOrder,
    Prefilled,
    PrefillOrder,
    PromptChunkLogprobs,
    Proposal,
    TokenLogprobs,
)
from pdv_mp.wire.frames import ColumnReader, FrameCodec, Stamps, int32_column
from pdv_mp.wire.kv_rows import rows_columns, rows_fields, take_rows

_Columns = list[npt.NDArray[Any]]


def lane_socket(lane: str, generation: int) -> str:
    """File name, in the run directory, of the socket of one generation of a lane."""
    return f"{lane}.{generation}"


def _sampling_columns(sampling: SamplingColumns) -> _Columns:
    return [
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.seeds,
    ]


def _take_sampling(columns: ColumnReader, length: int) -> SamplingColumns:
    return SamplingColumns(
        columns.float32(length),
        columns.int64(length),
        columns.float64(length),
        columns.float64(length),
        columns.int64(length),
    )


@dataclass(slots=True, kw_only=True)
class LaneReady:
    """Lane to scheduler, once after start. ``facts``: ``fingerprint``, and ``processes``, its pid
    by name."""

    kind: ClassVar[int] = 32
    facts: dict[str, Any]
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], _Columns]:
        return [self.facts], []

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> LaneReady:
        (facts,) = fields
        return cls(facts=facts, stamps=stamps)


@dataclass(slots=True, kw_only=True)
class PrefillWork:
    """Scheduler to prefill lane: these slots are yours until you return them."""

    kind: ClassVar[int] = 33
    order: PrefillOrder
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], _Columns]:
        order = self.order
        numbers = int32_column(
            order.slots,
            order.starts,
            order.lengths,
            order.fills_draft,
            order.logprobs,
            order.prompt_logprobs,
            order.ids,
        )
        columns = [numbers, *_sampling_columns(order.sampling)]
        return [len(order.slots), len(order.ids)], columns

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> PrefillWork:
        entries, num_ids = fields
        slots, starts, lengths = columns.widened(entries, entries, entries)
        fills_draft = columns.int32(entries).astype(np.bool_)
        logprobs, prompt_logprobs = columns.widened(entries, entries)
        order = PrefillOrder(
            slots=slots,
            starts=starts,
            lengths=lengths,
            fills_draft=fills_draft,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            ids=columns.int32(num_ids),
            sampling=_take_sampling(columns, entries),
        )
        return cls(order=order, stamps=stamps)


@dataclass(slots=True, kw_only=True)
class Withdraw:
    """Scheduler to prefill lane: return these slots, their prompts are no longer wanted."""

    kind: ClassVar[int] = 34
    slots: npt.NDArray[np.int64]
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], _Columns]:
        return [len(self.slots)], [int32_column(self.slots)]

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> Withdraw:
        (entries,) = fields
        (slots,) = columns.widened(entries)
        return cls(slots=slots, stamps=stamps)


@dataclass(slots=True, kw_only=True)
class Withdrawn:
    """Prefill lane to scheduler: the slots of a Withdraw that had not been returned already."""

    kind: ClassVar[int] = 35
    slots: npt.NDArray[np.int64]
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], _Columns]:
        return [len(self.slots)], [int32_column(self.slots)]

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> Withdrawn:
        (entries,) = fields
        (slots,) = columns.widened(entries)
        return cls(slots=slots, stamps=stamps)


@dataclass(slots=True, kw_only=True)
class Release:
    """Scheduler to prefill lane: these buffers with KV are no longer needed."""

    kind: ClassVar[int] = 41
    numbers: npt.NDArray[np.int64]
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], _Columns]:
        return [len(self.numbers)], [self.numbers]

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> Release:
        (entries,) = fields
        return cls(numbers=columns.int64(entries), stamps=stamps)


@dataclass(slots=True, kw_only=True)
class PrefillResult:
    """Prefill lane to scheduler: what one batch computed.

    ``orders``: by computed slot, the stamps of the order that brought it, as encode, sent,
    received, decoded (ns); all 0 if an earlier result had them. ``busy_ns``: by computed slot, how
    long the lane had worked for others since the slot came or its last chunk ended. ``rows``: where
    caches are private, the KV of the prompts that are complete.
    """

    kind: ClassVar[int] = 36
    result: Prefilled
    batch: BatchStamps
    orders: npt.NDArray[np.int64]
    busy_ns: npt.NDArray[np.int64]
    rows: Sequence[KVRows] = ()
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], _Columns]:
        result, batch = self.result, self.batch
        columns: _Columns = [
            int32_column(result.slots, result.next_ids, result.computed, result.lengths),
            np.ascontiguousarray(self.orders, np.int64),
            self.busy_ns,
        ]
        parts = [] if result.logprobs is None else [result.logprobs]
        parts += [chunk.logprobs for chunk in result.prompt_logprobs]
        for part in parts:
            columns += [
                np.ascontiguousarray(part.chosen, np.float32),
                np.ascontiguousarray(part.top_ids, np.int32),
                np.ascontiguousarray(part.top, np.float32),
            ]
        fields = [
            len(result.slots),
            len(result.computed),
            [batch.picked_ns, batch.started_ns, batch.ended_ns],
            None if result.logprobs is None else result.logprobs.top.shape[-1],
            [
                [chunk.slot, chunk.start, *chunk.logprobs.top.shape]
                for chunk in result.prompt_logprobs
            ],
            rows_fields(self.rows),
        ]
        return fields, columns + rows_columns(self.rows)

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> PrefillResult:
        done, computed, batch, width, chunks, rows = fields
        ids = columns.widened(done, done, computed, computed)
        orders = columns.int64(4 * computed).reshape(computed, 4)
        busy_ns = columns.int64(computed)
        logprobs = None if width is None else _take_logprobs(columns, (done, 1), width)
        prompt_logprobs = tuple(
            PromptChunkLogprobs(slot, start, _take_logprobs(columns, (rows,), wide))
            for slot, start, rows, wide in chunks
        )
        return cls(
            result=Prefilled(
                slots=ids[0],
                next_ids=ids[1],
                computed=ids[2],
                lengths=ids[3],
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
            ),
            batch=BatchStamps(*batch),
            orders=orders,
            busy_ns=busy_ns,
            rows=take_rows(rows, columns),
            stamps=stamps,
        )


def _take_logprobs(columns: ColumnReader, shape: tuple[int, ...], width: int) -> TokenLogprobs:
    rows = int(np.prod(shape))
    return TokenLogprobs(
        columns.float32(rows).reshape(shape),
        columns.int32(rows * width).reshape(*shape, width),
        columns.float32(rows * width).reshape(*shape, width),
    )


@dataclass(slots=True, kw_only=True)
class DraftWork:
    """Scheduler to draft lane: these slots are yours until their proposal arrives. ``rows``: where
    caches are private, the KV of those that are new to the lane."""

    kind: ClassVar[int] = 37
    order: DraftOrder
    rows: Sequence[KVRows] = ()
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], _Columns]:
        order = self.order
        numbers = int32_column(
            order.slots, order.base, order.lengths, order.starts, order.ids, order.fresh
        )
        fields = [
            order.cycle,
            len(order.slots),
            len(order.ids),
            len(order.fresh),
            rows_fields(self.rows),
        ]
        return fields, [numbers, *_sampling_columns(order.sampling), *rows_columns(self.rows)]

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> DraftWork:
        cycle, entries, num_ids, num_fresh, rows = fields
        slots, base, lengths, starts = columns.widened(entries, entries, entries, entries)
        ids = columns.int32(num_ids)
        (fresh,) = columns.widened(num_fresh)
        order = DraftOrder(
            cycle=cycle,
            slots=slots,
            base=base,
            lengths=lengths,
            starts=starts,
            ids=ids,
            fresh=fresh,
            sampling=_take_sampling(columns, num_fresh),
        )
        return cls(order=order, rows=take_rows(rows, columns), stamps=stamps)


@dataclass(slots=True, kw_only=True)
class Halt:
    """Scheduler to draft lane: draft ahead no further. Answered by :class:`Halted`."""

    kind: ClassVar[int] = 39
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], _Columns]:
        return [], []

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> Halt:
        () = fields
        return cls(stamps=stamps)


@dataclass(slots=True, kw_only=True)
class Halted:
    """Draft lane to scheduler: no slot is written to before the next order."""

    kind: ClassVar[int] = 40
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], _Columns]:
        return [], []

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> Halted:
        () = fields
        return cls(stamps=stamps)


@dataclass(slots=True, kw_only=True)
class DraftResult:
    """Draft lane to scheduler: the proposal of a cycle. ``order``: the stamps of its order.
    ``busy_ns``: how long the lane waited for a device that others were using. ``ahead_drafts``,
    ``ahead_hits``: tokens drafted ahead since the last proposal, and those used in this one.

    ``lost``: slots whose KV the lane could not take over, because the process that had it is gone;
    then nothing is proposed, and the lane has not learned the parameters of the order. All other KV
    of the order is in its cache now.
    """

    kind: ClassVar[int] = 38
    cycle: int
    proposal: Proposal
    batch: BatchStamps
    order: Stamps
    busy_ns: int = 0
    ahead_drafts: int = 0
    ahead_hits: int = 0
    lost: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    stamps: Stamps = field(default_factory=Stamps)

    def _fields(self) -> tuple[list[Any], _Columns]:
        proposal, batch, order = self.proposal, self.batch, self.order
        fields = [
            self.cycle,
            *proposal.ids.shape,
            [batch.picked_ns, batch.started_ns, batch.ended_ns],
            [order.encode_ns, order.sent_ns, order.received_ns, order.decoded_ns],
            [self.busy_ns, self.ahead_drafts, self.ahead_hits],
            len(self.lost),
        ]
        ids = proposal.ids.ravel()
        columns = (proposal.slots, proposal.base, proposal.lengths, ids, self.lost)
        return fields, [int32_column(*columns)]

    @classmethod
    def _from(cls, fields: list[Any], columns: ColumnReader, stamps: Stamps) -> DraftResult:
        cycle, entries, width, batch, order, counts, num_lost = fields
        busy_ns, ahead_drafts, ahead_hits = counts
        slots, base, lengths = columns.widened(entries, entries, entries)
        ids, lost = columns.widened(entries * width, num_lost)
        return cls(
            cycle=cycle,
            proposal=Proposal(slots, base, lengths, ids.reshape(entries, width)),
            batch=BatchStamps(*batch),
            order=Stamps(*order),
            busy_ns=busy_ns,
            ahead_drafts=ahead_drafts,
            ahead_hits=ahead_hits,
            lost=lost,
            stamps=stamps,
        )


StageMessage = (
    LaneReady
    | PrefillWork
    | Withdraw
    | Withdrawn
    | Release
    | PrefillResult
    | DraftWork
    | DraftResult
    | Halt
    | Halted
)
_CODEC: FrameCodec[StageMessage] = FrameCodec(
    (
        LaneReady,
        PrefillWork,
        Withdraw,
        Withdrawn,
        Release,
        PrefillResult,
        DraftWork,
        DraftResult,
        Halt,
        Halted,
    )
)
encode = _CODEC.encode
decode = _CODEC.decode
