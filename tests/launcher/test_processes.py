"""Children and their control socket, without a supervisor."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import zmq
from process_end import wait_ended

from launcher.child import Child, ChildSpec
from launcher.processes import Processes
from pdv_mp.config import ConfigError
from pdv_mp.control import control_endpoint
from pdv_mp.wire.control import (
    ControlError,
    ControlMessage,
    Hello,
    Lost,
    Progress,
    Restarting,
    decode_control,
    encode_control,
)


def specify(name: str, generations: Mapping[str, int]) -> ChildSpec:
    return ChildSpec(name, ["sleep", "1000"], os.environ)


@pytest.fixture
def processes(run_place: tuple[str, Path]) -> Iterator[Processes]:
    made = Processes(run_place[1], ["front", "worker-0"], specify, lambda line: None)
    yield made
    assert made.kill_all(10.0) == []
    made.close()
    (run_place[1] / "control").unlink()


def test_a_place_where_no_socket_can_be_is_named(tmp_path: Path) -> None:
    place = tmp_path / ("long" * 40)
    place.mkdir()
    with pytest.raises(ConfigError, match=r"cannot make a socket in .*long: .*XDG_RUNTIME_DIR"):
        Processes(place, ["front"], specify, lambda line: None)


class Peer:
    """The socket of a child."""

    def __init__(self, run_dir: Path) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(control_endpoint(run_dir))

    def send(self, message: ControlMessage) -> None:
        self._socket.send(encode_control(message))

    def receive(self) -> ControlMessage:
        return decode_control(self._socket.recv())

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()


@pytest.fixture
def peers(run_place: tuple[str, Path]) -> Iterator[list[Peer]]:
    made = [Peer(run_place[1]), Peer(run_place[1])]
    yield made
    for peer in made:
        peer.close()


def next_of(processes: Processes) -> tuple[Child, ControlMessage]:
    while (received := processes.receive()) is None:
        assert processes.poller.poll(10_000)
    return received


def test_what_is_said_before_the_hello_arrives_after_it(
    processes: Processes, peers: list[Peer]
) -> None:
    processes.start("worker-0")
    child = processes["worker-0"]
    notices = [Restarting("draft-0", 1, 9), Restarting("draft-0", 2, 8)]
    for notice in notices:
        processes.send(child, notice)
    peers[0].send(Hello("worker-0", child.pid))
    assert next_of(processes) == (child, Hello("worker-0", child.pid))
    processes.send(child, Lost("draft-0"))
    assert [peers[0].receive() for _ in range(3)] == [*notices, Lost("draft-0")]


def test_last_words_of_one_with_a_successor_are_ignored(
    processes: Processes, peers: list[Peer]
) -> None:
    for peer in peers:
        processes.start("worker-0")
        child = processes["worker-0"]
        peer.send(Hello("worker-0", child.pid))
        assert next_of(processes)[0] is child
        if peer is peers[0]:
            child.kill()
            child.wait(10.0)
    peers[0].send(Progress("worker-0", "of the first"))
    peers[0].send(Progress("worker-0", "of the first"))
    assert processes.poller.poll(10_000)
    while processes.poller.poll(100):
        assert processes.receive() is None
    peers[1].send(Progress("worker-0", "of the second"))
    assert next_of(processes) == (child, Progress("worker-0", "of the second"))


def test_strangers_are_refused(processes: Processes, peers: list[Peer]) -> None:
    processes.start("worker-0")
    peers[0].send(Hello("worker-0", processes["worker-0"].pid + 1))
    with pytest.raises(ControlError, match="is not our 'worker-0'"):
        next_of(processes)
    peers[1].send(Progress("worker-0", "hidden"))
    with pytest.raises(ControlError, match="Progress from a process that said no hello"):
        next_of(processes)


def test_a_death_that_killing_comes_upon_is_still_to_be_noticed(processes: Processes) -> None:
    processes.start("worker-0")
    child = processes["worker-0"]
    os.kill(child.pid, signal.SIGUSR1)
    wait_ended(child.pid)
    child.kill()
    assert child.alive
    assert child.poll()
    assert not child.killed
    assert child.describe_exit() == "was killed by SIGUSR1"
