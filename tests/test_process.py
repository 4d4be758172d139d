"""The entry point of every child, run as the supervisor runs it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zmq

from pdv_mp import process
from pdv_mp.config import EngineConfig
from pdv_mp.control import ControlClient, control_endpoint
from pdv_mp.process import CONFIG_FILE
from pdv_mp.topology import PDV, Topology
from pdv_mp.wire.control import (
    Drain,
    Failed,
    Hello,
    Ping,
    Pong,
    Received,
    decode_control,
    encode_control,
)


def run_child(name: str, run_dir: Path, *more: str) -> tuple[Failed, int, str]:
    """What the child says at its end, its exit status, and what it wrote."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(control_endpoint(run_dir))
    command = [sys.executable, "-m", "pdv_mp.process", name, "--run-dir", str(run_dir)]
    child = subprocess.Popen(
        [*command, "--parent-pid", str(os.getpid()), *more], stderr=subprocess.PIPE, text=True
    )
    try:
        identity, hello = router.recv_multipart()
        assert decode_control(hello) == Hello(name, child.pid)
        message = decode_control(router.recv_multipart()[1])
        assert isinstance(message, Failed)
        assert child.poll() is None, "it must wait until its last message was received"
        router.send_multipart((identity, encode_control(Received())))
        _, text = child.communicate(timeout=30)
    finally:
        child.kill()
        child.wait()
        router.close(0)
        context.term()
        (run_dir / "control").unlink()
    return message, child.returncode, text


@pytest.fixture
def run_dir(run_place: tuple[str, Path]) -> Path:
    return run_place[1]


def test_users_mistake_is_reported_without_a_traceback(run_dir: Path) -> None:
    config = run_dir / CONFIG_FILE
    config.write_text(EngineConfig().to_json())
    message, status, text = run_child("worker-7", run_dir)
    config.unlink()
    assert message == Failed("worker-7", "topology 'unified' has no process 'worker-7'", 2)
    assert status == 2
    assert text == ""


@pytest.mark.parametrize("text", ["[]", '{"front": 1.5}', '{"front": true}', "front"])
def test_damaged_generations_are_refused(run_dir: Path, text: str) -> None:
    command = [sys.executable, "-m", "pdv_mp.process", "front", "--run-dir", str(run_dir)]
    done = subprocess.run(
        [*command, "--parent-pid", str(os.getpid()), "--generations", text],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "--generations" in done.stderr


ROLES = {
    "front": ("pdv_mp.front", "run_front"),
    "pools": ("pdv_mp.resources.pools_process", "run_pools"),
    "prefill-0": ("pdv_mp.lanes.lane_process", "run_lane"),
    "draft-1": ("pdv_mp.lanes.lane_process", "run_lane"),
    "verify-1": ("pdv_mp.workers.worker_process", "run_worker"),
    "tokenizer-1": ("pdv_mp.workers.tokenizer_process", "run_tokenizer"),
}


@pytest.mark.parametrize("name", ROLES)
def test_a_name_stands_for_its_role(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = EngineConfig(topology="two", table=Topology("two", PDV.workers, 2, tokenizers=2))
    (run_dir / CONFIG_FILE).write_text(config.to_json())
    module, function = ROLES[name]
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        importlib.import_module(module), function, lambda *given: calls.append(given)
    )
    control = object()
    generations = {"draft-1": 3, "verify-1": 0}
    process._run_role(name, run_dir, generations, control)  # type: ignore[arg-type]
    (run_dir / CONFIG_FILE).unlink()
    tail = {"run_front": (generations,), "run_pools": ()}.get(function, (generations,))
    named = () if name in ("front", "pools") else (name,)
    assert calls == [(config, *named, run_dir, control, *tail)]


def test_pings_are_answered_between_other_messages(run_dir: Path) -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(control_endpoint(run_dir))
    client = ControlClient(run_dir, "worker-0")
    try:
        identity, hello = router.recv_multipart()
        assert decode_control(hello) == Hello("worker-0", os.getpid())
        for message in (Ping(), Drain(), Ping()):
            router.send_multipart((identity, encode_control(message)))
        received = []
        answers = []
        while len(answers) < 2:
            if client.socket.poll(10):
                received.append(client.receive())
            while router.poll(0):
                answers.append(decode_control(router.recv_multipart()[1]))
        assert answers == [Pong(), Pong()]
        assert received[0] == Drain()
        assert set(received[1:]) <= {None}
    finally:
        client.close()
        router.close(0)
        context.term()
        (run_dir / "control").unlink()


def test_fault_is_reported_and_its_traceback_logged(run_dir: Path) -> None:
    message, status, text = run_child("front", run_dir)
    assert message.exit_code == status == 3
    assert message.message.startswith("FileNotFoundError: ")
    assert "Traceback" in text


def test_child_whose_parent_is_gone_does_nothing(run_dir: Path) -> None:
    command = [sys.executable, "-m", "pdv_mp.process", "front", "--run-dir", str(run_dir)]
    done = subprocess.run(
        [*command, "--parent-pid", "1"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
