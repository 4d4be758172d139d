"""The entry point of every child, run as the supervisor runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from pdv_mp.config import EngineConfig
from pdv_mp.control import control_endpoint
from pdv_mp.process import CONFIG_FILE
from pdv_mp.wire.control import Failed, Hello, Received, decode_control, encode_control


def run_child(name: str, run_dir: Path) -> tuple[Failed, int, str]:
    """What the child says at its end, its exit status, and what it wrote."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(control_endpoint(run_dir))
    command = [sys.executable, "-m", "pdv_mp.process", name, "--run-dir", str(run_dir)]
    child = subprocess.Popen(
        [*command, "--parent-pid", str(os.getpid())], stderr=subprocess.PIPE, text=True
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
