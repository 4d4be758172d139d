"""Messages between the front and a worker are carried while the worker does something else."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from pdv_mp.lanes.injected_delay import HeldFrames
from pdv_mp.wire import engine as wire
from pdv_mp.workers.front_edge import FrontEdge

GENERATION = 3
DELAY_NS = 60_000_000
PATIENCE_MS = 20_000
CROSSING = 3000

Front = zmq.Socket[bytes]
MakeEdge = Callable[[HeldFrames | None], FrontEdge]


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.term()


@pytest.fixture
def front(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> Iterator[Front]:
    socket = context.socket(zmq.PAIR)
    socket.bind(f"ipc://{tmp_path / wire.engine_socket(GENERATION, 1)}")
    yield socket
    socket.close(linger=0)


@pytest.fixture
def make_edge(
    context: zmq.Context[zmq.Socket[bytes]], front: Front, tmp_path: Path
) -> Iterator[MakeEdge]:
    made: list[FrontEdge] = []

    def make(held: HeldFrames | None = None) -> FrontEdge:
        edge = FrontEdge(context, tmp_path, GENERATION, 1, held)
        made.append(edge)
        edge.start()
        return edge

    yield make
    for edge in made:
        edge.close()
    assert not [thread for thread in threading.enumerate() if "front-edge" in thread.name]


def close_of(*requests: int) -> wire.Close:
    return wire.Close(requests=np.array(requests, np.int64))


def wait_for(edge: FrontEdge) -> None:
    assert select.select([edge.fd], [], [], PATIENCE_MS / 1000)[0], "nothing has come"
    edge.noticed()


def taken(edge: FrontEdge, count: int) -> list[wire.EngineMessage]:
    """The next messages; there must be no more."""
    found: list[wire.EngineMessage] = []
    while len(found) < count:
        wait_for(edge)
        while (message := edge.receive()) is not None:
            found.append(message)
    assert len(found) == count
    return found


def received_by(front: Front, count: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < count:
        assert front.poll(PATIENCE_MS), "nothing has come"
        frames.append(front.recv())
    return frames


def take_for_ever(edge: FrontEdge, found: list[wire.EngineMessage]) -> None:
    while True:
        wait_for(edge)
        while (message := edge.receive()) is not None:
            found.append(message)


def test_a_message_is_taken_in_while_the_loop_does_not_look(
    front: Front, make_edge: MakeEdge
) -> None:
    edge = make_edge(None)
    front.send(wire.encode(close_of(7), GENERATION))
    wait_for(edge)
    looked_ns = time.monotonic_ns()
    message = edge.receive()
    assert isinstance(message, wire.Close)
    assert message.requests.tolist() == [7]
    stamps = message.stamps
    assert stamps.encode_ns <= stamps.sent_ns <= stamps.received_ns <= stamps.decoded_ns
    assert stamps.decoded_ns < looked_ns


def test_messages_keep_their_order_and_those_of_another_generation_are_dropped(
    front: Front, make_edge: MakeEdge
) -> None:
    edge = make_edge(None)
    for request in range(50):
        front.send(wire.encode(close_of(request), GENERATION - (request % 5 == 4)))
    found = taken(edge, 40)
    assert [int(message.requests[0]) for message in found if isinstance(message, wire.Close)] == [
        request for request in range(50) if request % 5 != 4
    ]


def test_messages_are_sent_in_order_with_their_stamps(front: Front, make_edge: MakeEdge) -> None:
    edge = make_edge(None)
    edge.send(wire.EngineReady(facts={"vocab_size": 9}))
    for number in range(50):
        edge.send(wire.InfoReply(number=number, info={}), 1000 + number)
    frames = received_by(front, 51)
    ready, *replies = [wire.decode(frame, time.monotonic_ns())[0] for frame in frames]
    assert isinstance(ready, wire.EngineReady)
    assert ready.facts == {"vocab_size": 9}
    assert 0 < ready.stamps.encode_ns <= ready.stamps.sent_ns
    assert [(reply.number, reply.stamps.encode_ns) for reply in replies] == [  # type: ignore[union-attr]
        (number, 1000 + number) for number in range(50)
    ]


def test_nothing_is_overheard_while_messages_cross(front: Front, make_edge: MakeEdge) -> None:
    edge = make_edge(None)
    for number in range(CROSSING):
        front.send(wire.encode(close_of(number), GENERATION))
        for _ in range(number % 7):
            edge.send(wire.InfoReply(number=number, info={}))
        (message,) = taken(edge, 1)
        assert isinstance(message, wire.Close)
        assert message.requests.tolist() == [number]
    received_by(front, sum(number % 7 for number in range(CROSSING)))


def test_a_damaged_message_is_raised_after_those_before_it(
    front: Front, make_edge: MakeEdge
) -> None:
    edge = make_edge(None)
    front.send(wire.encode(close_of(1), GENERATION))
    front.send(b"\xff" * 40)
    front.send(wire.encode(close_of(2), GENERATION))
    found: list[wire.EngineMessage] = []
    with pytest.raises(wire.WireError, match="unknown kind of message 255"):
        take_for_ever(edge, found)
    assert [int(message.requests[0]) for message in found if isinstance(message, wire.Close)] == [1]


def test_what_is_held_back_comes_later(front: Front, make_edge: MakeEdge) -> None:
    edge = make_edge(HeldFrames(DELAY_NS))
    front.send(wire.encode(close_of(1), GENERATION))
    (message,) = taken(edge, 1)
    assert message.stamps.received_ns - message.stamps.sent_ns >= DELAY_NS


def test_what_is_asked_of_an_edge_that_has_nothing(make_edge: MakeEdge) -> None:
    edge = make_edge(None)
    assert edge.receive() is None
    assert not select.select([edge.fd], [], [], 0)[0]
