"""Messages between the scheduler's worker and its lanes: the bytes of their columns, round trips,
and that damage to a frame is told as such and as nothing else."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdv_mp.speculation.sampling import SamplingColumns
from pdv_mp.stages.kv_rows import KVBuffer, KVRows
from pdv_mp.stages.messages import (
    DraftOrder,
    Prefilled,
    PrefillOrder,
    PromptChunkLogprobs,
    Proposal,
    TokenLogprobs,
)
from pdv_mp.wire import stages
from pdv_mp.wire.frames import HEADER, BatchStamps, Stamps, WireError

BATCH = BatchStamps(10, 20, 30)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def sampling(entries: int) -> SamplingColumns:
    return SamplingColumns(
        np.arange(entries, dtype=np.float32),
        np.arange(entries, dtype=np.int64),
        np.full(entries, 0.5),
        np.full(entries, 0.25),
        np.arange(entries, dtype=np.int64) - 7,
    )


def logprobs(*shape: int) -> TokenLogprobs:
    draw = np.random.default_rng(1)
    chosen, top = draw.random(shape[:-1], np.float32), draw.random(shape, np.float32)
    return TokenLogprobs(chosen, draw.integers(0, 9, shape).astype(np.int32), top)


ROWS = [
    KVRows(1, "target", 2, np.arange(16, dtype=np.uint8)),
    KVRows(2, "draft", 3, KVBuffer(1, 2, 3, 4, 5, b"ipc")),
]

MESSAGES: dict[str, Any] = {
    "ready": stages.LaneReady(facts={"fingerprint": "f", "processes": {"draft-0": 3}}),
    "prefill": stages.PrefillWork(
        order=PrefillOrder(
            slots=ints(3, 1),
            starts=ints(0, 2),
            lengths=ints(2, 5),
            ids=np.array([5, 6, 7, 8, 9], np.int32),
            fills_draft=np.array([True, False]),
            logprobs=ints(-1, 2),
            prompt_logprobs=ints(0, -1),
            sampling=sampling(2),
        )
    ),
    "prefilled": stages.PrefillResult(
        result=Prefilled(
            slots=ints(3),
            next_ids=ints(70_000),
            computed=ints(3, 1),
            lengths=ints(2, 1),
            logprobs=logprobs(1, 1, 2),
            prompt_logprobs=(PromptChunkLogprobs(1, 1, logprobs(2, 3)),),
        ),
        batch=BATCH,
        orders=np.arange(8).reshape(2, 4),
        busy_ns=ints(0, 2**40),
        rows=ROWS,
    ),
    "withdraw": stages.Withdraw(slots=ints(4, 5)),
    "withdrawn": stages.Withdrawn(slots=ints()),
    "release": stages.Release(numbers=ints(2**40)),
    "draft": stages.DraftWork(
        order=DraftOrder(
            cycle=9,
            slots=ints(3, 1),
            base=ints(10, 20),
            lengths=ints(4, 1),
            starts=ints(9, 18),
            ids=np.array([5, 6, 7], np.int32),
            fresh=ints(1),
            sampling=sampling(1),
        ),
        rows=ROWS,
    ),
    "drafted": stages.DraftResult(
        cycle=9,
        proposal=Proposal(ints(3, 1), ints(10, 20), ints(3, 1), ints(1, 2, 3, 4, -1, -1)),
        batch=BATCH,
        order=Stamps(1, 2, 3, 4),
        busy_ns=5,
        ahead_drafts=6,
        ahead_hits=7,
        lost=ints(1),
    ),
    "halt": stages.Halt(),
    "halted": stages.Halted(),
}
_DRAFTED = MESSAGES["drafted"]
_PROPOSAL = _DRAFTED.proposal
_DRAFTED.proposal = dataclasses.replace(_PROPOSAL, ids=_PROPOSAL.ids.reshape(2, 3))
FRAMES = {name: bytes(stages.encode(message, 6, 11)) for name, message in MESSAGES.items()}


def frame_of(kind: int, fields: Any, columns: bytes) -> bytes:
    packed = msgpack.packb(fields)
    return HEADER.pack(kind, 6, len(packed), 11, 12) + packed + columns


def plain(value: Any) -> Any:
    """Without stamps of the journey, arrays as type and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name)) for name in names if name != "stamps"}
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def test_every_kind_of_message_is_here() -> None:
    assert {type(message) for message in MESSAGES.values()} == set(stages._CODEC.types)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_arrives_as_it_was(name: str) -> None:
    message, generation = stages.decode(FRAMES[name], 77)
    assert generation == 6
    assert plain(message) == plain(MESSAGES[name])
    assert (message.stamps.encode_ns, message.stamps.received_ns) == (11, 77)
    assert message.stamps.size == len(FRAMES[name])


def test_columns_follow_each_other_as_little_endian_numbers() -> None:
    fields = [9, 2, 3, [10, 20, 30], [1, 2, 3, 4], [5, 6, 7], 1]
    numbers = [3, 1, 10, 20, 3, 1, 1, 2, 3, 4, -1, -1, 1]
    expected = frame_of(38, fields, struct.pack(f"<{len(numbers)}i", *numbers))
    assert FRAMES["drafted"][HEADER.size :] == expected[HEADER.size :]
    order = [3, 1, 0, 2, 2, 5, 1, 0, -1, 2, 0, -1, 5, 6, 7, 8, 9]
    body = struct.pack(f"<{len(order)}i", *order)
    body += struct.pack("<2f2q4d2q", 0, 1, 0, 1, 0.5, 0.5, 0.25, 0.25, -7, -6)
    assert FRAMES["prefill"][HEADER.size :] == frame_of(33, [2, 5], body)[HEADER.size :]


@pytest.mark.parametrize(
    "fields",
    [
        [9, -1, -1, [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], 2],
        [9, 1, -1, [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], 1],
        [9, 0, 2**64 - 1, [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], 3],
        [9, 0, -1, [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], 3],
        [9, 0.0, 0, [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], 3],
        [9, 0, float("nan"), [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], 3],
        [9, "1", 0, [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], 3],
        [9, [], 0, [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], 3],
        [9, [0], 2**40, [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], 3],
        [9, 2**63, 2, [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], 3],
        [9, 0, 0, [1, 2], [1, 2, 3, 4], [0, 0, 0], 3],
        [9, 0, 0, [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], 2],
        [9, 0, 0, [1, 2, 3], [1, 2, 3, 4], [0, 0, 0], 4],
    ],
)
def test_lengths_that_no_frame_can_have_are_refused(fields: list[Any]) -> None:
    with pytest.raises(WireError):
        stages.decode(frame_of(38, fields, bytes(12)), 0)


@pytest.mark.parametrize("rows", [float("inf"), float("nan"), -1, "1", 2**64 - 1])
def test_log_probabilities_that_no_frame_can_have_are_refused(rows: Any) -> None:
    fields = [0, 0, [1, 2, 3], None, [[1, 1, rows, 2]], []]
    with pytest.raises(WireError):
        stages.decode(frame_of(36, fields, b""), 0)


def refused_or_taken(frame: bytes) -> None:
    try:
        stages.decode(frame, 0)
    except WireError:
        return


@given(name=st.sampled_from(sorted(FRAMES)), data=st.data())
def test_damage_is_a_wire_error_or_another_message(name: str, data: st.DataObject) -> None:
    frame = bytearray(FRAMES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at] = data.draw(st.integers(0, 255))
    refused_or_taken(bytes(frame))
    refused_or_taken(bytes(frame[: data.draw(st.integers(0, len(frame)))]))


@pytest.mark.parametrize("name", MESSAGES)
def test_a_frame_that_was_cut_is_refused(name: str) -> None:
    for length in range(len(FRAMES[name])):
        with pytest.raises(WireError):
            stages.decode(FRAMES[name][:length], 0)
    with pytest.raises(WireError, match="1 bytes too many"):
        stages.decode(FRAMES[name] + b"x", 0)
