"""Frames between front and worker: round trips, stamps, and damage."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdv_mp.wire import engine as wire

ids = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40)


def round_trip(message: wire.EngineMessage) -> wire.EngineMessage:
    before = time.monotonic_ns()
    frame = bytes(wire.encode(message, generation=7, encode_ns=before))
    received = time.monotonic_ns()
    decoded, generation = wire.decode(frame, received)
    stamps = decoded.stamps
    assert generation == 7
    assert before == stamps.encode_ns <= stamps.sent_ns <= stamps.received_ns == received
    assert stamps.decoded_ns >= received
    assert type(decoded) is type(message)
    return decoded


@given(
    prompt=ids, stops=st.lists(st.integers(0, 2**31 - 1), max_size=16), seed=st.integers(0, 2**53)
)
def test_open_round_trip(prompt: list[int], stops: list[int], seed: int) -> None:
    message = wire.Open(
        request=2**40,
        prompt_ids=np.array(prompt, np.int32),
        max_tokens=9,
        sampling=(0.7, 40, 0.9, 0.05, seed),
        stop_ids=tuple(stops),
        speculate=True,
        report_timeline=False,
        timeline=[1, 2, 3, [], []],
        logprobs=5,
        prompt_logprobs=0,
        at_once=False,
    )
    decoded = round_trip(message)
    assert isinstance(decoded, wire.Open)
    assert decoded.prompt_ids.tolist() == prompt
    assert (decoded.request, decoded.max_tokens, decoded.sampling) == (2**40, 9, message.sampling)
    assert (decoded.stop_ids, decoded.speculate, decoded.report_timeline) == (
        tuple(stops),
        True,
        False,
    )
    assert decoded.timeline == [1, 2, 3, [], []]
    assert (decoded.logprobs, decoded.prompt_logprobs, decoded.at_once) == (5, 0, False)


def logprob_columns(widths: list[int]) -> wire.LogprobColumns:
    total = sum(max(width, 0) for width in widths)
    return wire.LogprobColumns(
        chosen=-np.arange(len(widths), dtype=np.float32) / 3,
        widths=np.array(widths, np.int32),
        top_ids=np.arange(total, dtype=np.int32) + 2**30,
        top=-np.arange(total, dtype=np.float32) / 7,
    )


def same_logprobs(one: wire.LogprobColumns, other: wire.LogprobColumns) -> bool:
    pairs = zip(one.columns(), other.columns(), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@given(widths=st.lists(st.integers(-1, 20), max_size=20), start=st.integers(1, 2**31))
def test_log_probabilities_round_trip(widths: list[int], start: int) -> None:
    columns = logprob_columns(widths)
    part = round_trip(wire.PromptLogprobs(request=2**40, start=start, logprobs=columns))
    assert isinstance(part, wire.PromptLogprobs)
    assert (part.request, part.start) == (2**40, start)
    assert same_logprobs(part.logprobs, columns)
    one = np.ones(1, np.int32)
    tokens = wire.Tokens(
        requests=np.array([2**40], np.int64),
        queued_ns=np.zeros(1, np.int64),
        counts=one * len(widths),
        drafted=one,
        accepted=one,
        finish=one,
        stop_ids=one,
        cached=one,
        ids=np.arange(len(widths), dtype=np.int32),
        logprobs=columns,
    )
    decoded = round_trip(tokens)
    assert isinstance(decoded, wire.Tokens)
    assert decoded.ids.tolist() == tokens.ids.tolist()
    assert decoded.logprobs is not None
    assert same_logprobs(decoded.logprobs, columns)


@given(counts=st.lists(st.integers(0, 5), max_size=20))
def test_tokens_round_trip(counts: list[int]) -> None:
    entries, total = len(counts), sum(counts)
    column = np.arange(entries, dtype=np.int32)
    message = wire.Tokens(
        requests=np.arange(entries, dtype=np.int64) + 2**40,
        queued_ns=np.arange(entries, dtype=np.int64) * 2**40,
        counts=np.array(counts, np.int32),
        drafted=column,
        accepted=column + 1,
        finish=column + 2,
        stop_ids=column - 1,
        cached=column + 3,
        ids=np.arange(total, dtype=np.int32),
        timelines=[(0, [5, 6])] if entries else [],
        messages=[(0, "why")] if entries else [],
        emitted_ns=2**60,
    )
    decoded = round_trip(message)
    assert isinstance(decoded, wire.Tokens)
    for name in (
        "requests",
        "queued_ns",
        "counts",
        "drafted",
        "accepted",
        "finish",
        "stop_ids",
        "cached",
        "ids",
    ):
        assert np.array_equal(getattr(decoded, name), getattr(message, name)), name
    assert decoded.timelines == message.timelines
    assert decoded.messages == message.messages
    assert decoded.emitted_ns == 2**60
    assert decoded.logprobs is None


def test_close_and_info_round_trip() -> None:
    closed = round_trip(wire.Close(requests=np.array([3, 2**41], np.int64)))
    assert isinstance(closed, wire.Close)
    assert closed.requests.tolist() == [3, 2**41]
    asked = round_trip(wire.InfoRequest(number=4))
    assert isinstance(asked, wire.InfoRequest)
    assert asked.number == 4
    told = round_trip(wire.InfoReply(number=4, info={"counters": {"tokens": 1}}))
    assert isinstance(told, wire.InfoReply)
    assert told.info == {"counters": {"tokens": 1}}
    ready = round_trip(wire.EngineReady(facts={"credits": 39}))
    assert isinstance(ready, wire.EngineReady)
    assert ready.facts == {"credits": 39}


@given(data=st.data())
def test_a_damaged_frame_is_named(data: st.DataObject) -> None:
    message = wire.Close(requests=np.arange(5, dtype=np.int64))
    frame = bytes(wire.encode(message, 1))
    length = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(wire.WireError):
        wire.decode(frame[:length], 0)
    with pytest.raises(wire.WireError):
        wire.decode(frame + b"\0", 0)
    with pytest.raises(wire.WireError, match="unknown kind"):
        wire.decode(b"\xff" + frame[1:], 0)
