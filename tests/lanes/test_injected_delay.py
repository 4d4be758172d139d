"""Delays for experiments: parsed strictly, and nothing else is delayed."""

from __future__ import annotations

import time

import pytest

from pdv_mp.config import ConfigError
from pdv_mp.lanes.injected_delay import HeldFrames, delay_of, parse_delays


def test_delays_are_nanoseconds_by_edge() -> None:
    assert parse_delays("") == {}
    assert parse_delays(" draft>verify=500, verify>draft=0") == {
        "draft>verify": 500_000,
        "verify>draft": 0,
    }
    assert delay_of({"verify>draft": 0}, "verify>draft") is None
    assert delay_of({}, "verify>draft") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("draft>prefill=1", "'draft>prefill' is not one of"),
        ("draft>verify", "is not EDGE=MICROSECONDS"),
        ("draft>verify=-1", "is not EDGE=MICROSECONDS"),
        ("draft>verify=99999999", "is not EDGE=MICROSECONDS"),
        ("draft>verify=1,draft>verify=2", "names draft>verify twice"),
    ],
)
def test_anything_else_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_delays(text)


def test_frames_are_held_and_keep_their_order() -> None:
    held = HeldFrames(20_000_000)
    assert held.take() is None
    assert held.due_ns is None
    before = time.monotonic_ns()
    held.put(b"1")
    held.put(b"2")
    due = held.due_ns
    assert due is not None
    assert due >= before + 20_000_000
    assert held.take() is None
    while time.monotonic_ns() < due:
        pass
    assert held.take() == b"1"
    while (frame := held.take()) is None:
        pass
    assert frame == b"2"
    assert held.due_ns is None
