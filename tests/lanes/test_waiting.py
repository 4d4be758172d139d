"""Waiting for messages, in each way that there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import zmq

from pdv_mp.config import HandoffOptions
from pdv_mp.lanes.waiting import Waiting

MODES = ("block", "spin", "hybrid")


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    here, there = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    here.bind("inproc://waiting")
    there.connect("inproc://waiting")
    yield here, there
    here.close(linger=0)
    there.close(linger=0)
    context.term()


@pytest.mark.parametrize("mode", MODES)
def test_a_message_ends_the_wait(
    mode: str, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    here, there = pair
    waiting = Waiting(HandoffOptions(wait=mode))
    waiting.register(here)
    sender = threading.Timer(0.05, there.send, [b"x"])
    sender.start()
    assert waiting.ready() == set()
    assert waiting.wait() == {here}
    assert waiting.ready() == {here}
    assert here.recv(zmq.NOBLOCK) == b"x"
    assert waiting.ready() == set()
    sender.join()
    waiting.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_deadline_ends_the_wait_and_not_before(
    mode: str, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    waiting = Waiting(HandoffOptions(wait=mode))
    waiting.register(pair[0])
    for nanoseconds in (300_000, 3_000_000, -5):
        until = time.monotonic_ns() + nanoseconds
        assert waiting.wait(until) == set()
        assert time.monotonic_ns() >= until
    waiting.unregister(pair[0])
    waiting.close()


@pytest.mark.parametrize("mode", ["block", "hybrid"])
def test_an_idle_wait_costs_no_processor(
    mode: str, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    waiting = Waiting(HandoffOptions(wait=mode))
    waiting.register(pair[0])
    before = time.thread_time()
    waiting.wait(time.monotonic_ns() + 500_000_000)
    assert time.thread_time() - before < 0.1
    waiting.close()


@pytest.mark.parametrize("mode", ["block", "hybrid"])
def test_a_deadline_that_a_message_was_ahead_of_wakes_nobody_for_long(
    mode: str, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    here, there = pair
    waiting = Waiting(HandoffOptions(wait=mode))
    waiting.register(here)
    deadline = time.monotonic_ns() + 50_000_000
    sender = threading.Timer(0.02, there.send, [b"x"])
    sender.start()
    assert waiting.wait(deadline) == {here}
    assert here.recv(zmq.NOBLOCK) == b"x"
    sender.join()
    late = threading.Timer(0.4, there.send, [b"y"])
    late.start()
    before, empty = time.thread_time(), 0
    while not waiting.wait():
        empty += 1
    assert empty <= 1
    assert time.thread_time() - before < 0.1
    late.join()
    waiting.close()
