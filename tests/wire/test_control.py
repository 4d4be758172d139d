from __future__ import annotations

import threading
from pathlib import Path

import msgpack
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from pdv_mp.control import ControlClient, control_endpoint
from pdv_mp.wire.control import (
    Abort,
    Bye,
    ControlError,
    ControlMessage,
    Drain,
    Drained,
    Failed,
    Hello,
    Lost,
    Ping,
    Pong,
    Progress,
    Ready,
    Received,
    Restarting,
    Stop,
    decode_control,
    encode_control,
)

EXAMPLES: list[ControlMessage] = [
    Hello("front", 12),
    Progress("worker-0", "loading"),
    Ready("front", {"endpoint": "tcp://127.0.0.1:1", "eos_ids": [0]}),
    Failed("worker-0", "no memory", 3),
    Drained(),
    Pong(),
    Bye("front"),
    Ping(),
    Drain(),
    Abort(),
    Restarting("worker-0", 3, 7),
    Lost("worker-0"),
    Stop(),
    Received(),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_message_comes_back_as_it_was(message: ControlMessage) -> None:
    assert decode_control(encode_control(message)) == message


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"type": "hello", "name": "front"}, "pid"),
        ({"type": "hello", "name": "front", "pid": "12"}, "pid of a hello message"),
        ({"type": "hello", "name": "front", "pid": True}, "pid of a hello message"),
        ({"type": "stop", "extra": 1}, "extra"),
        ({"type": "ready", "name": "front", "facts": []}, "facts of a ready message"),
        ({"type": "nonsense"}, "nonsense"),
        ({"type": 7}, "7"),
        ({}, "None"),
        ([1, 2], "not a map"),
        ("stop", "not a map"),
    ],
)
def test_damaged_messages_are_refused_by_name(values: object, names: str) -> None:
    with pytest.raises(ControlError, match=names):
        decode_control(msgpack.packb(values))


@given(st.binary(max_size=64))
def test_random_bytes_never_raise_anything_else(frame: bytes) -> None:
    try:
        decode_control(frame)
    except ControlError:
        return


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_cut_frame_is_refused(message: ControlMessage, data: st.DataObject) -> None:
    frame = encode_control(message)
    with pytest.raises(ControlError):
        decode_control(frame[: data.draw(st.integers(0, len(frame) - 1))])


@pytest.fixture
def run_dir(run_place: tuple[str, Path]) -> Path:
    return run_place[1]


def test_last_message_waits_for_its_acknowledgement(run_dir: Path) -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(control_endpoint(run_dir))
    heard: list[ControlMessage] = []

    def supervise() -> None:
        while not (heard and isinstance(heard[-1], Bye)):
            identity, frame = router.recv_multipart()
            heard.append(decode_control(frame))
        router.send_multipart((identity, encode_control(Stop())))
        router.send_multipart((identity, encode_control(Received())))

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    client = ControlClient(run_dir, "front")
    assert client.receive() is None
    client.progress("loading")
    assert not client.ready_sent
    client.send(Ready("front", {}))
    assert client.ready_sent
    client.finish(Bye("front"), seconds=30)
    supervisor.join()
    assert client.socket.closed
    assert client.stop_received
    assert [type(message) for message in heard] == [Hello, Progress, Ready, Bye]
    router.close(0)
    context.term()
    (run_dir / "control").unlink()


def test_nobody_to_say_goodbye_to_is_bounded(run_dir: Path) -> None:
    client = ControlClient(run_dir, "front")
    client.finish(Bye("front"), seconds=0.05)
    assert client.socket.closed
