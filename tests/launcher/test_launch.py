"""``pdv-launch`` with real processes and a tiny model pair."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from conftest import tiny_arguments
from front.front_harness import FakeClient
from server_process import Finished, ServerProcess, run_launch
from tiny_model import TinyPair, make_tiny_pair, write_tokenizer

Start = Callable[..., ServerProcess]


class Peer(FakeClient):
    """A client that skips what a test does not look at."""

    def generate(self, name: str, **fields: Any) -> None:
        self.send("generate", **{"id": name, "prompt": "def add(", "ignore_eos": True, **fields})

    def next_of(self, *kinds: str, seconds: float = 30.0) -> dict[str, Any]:
        """The next message of one of these types."""
        while (message := self.receive(int(seconds * 1000)))["type"] not in kinds:
            pass
        return message


@contextmanager
def connected(endpoint: str) -> Iterator[Peer]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peer = Peer(context, endpoint)
    try:
        yield peer
    finally:
        peer.socket.close(0)
        context.term()


def test_serves_from_ready_to_sigterm(start_server: Start, tmp_path: Path) -> None:
    ready_file = tmp_path / "ready.json"
    ready_file.write_text("from an earlier life")
    server = start_server("--ready-file", str(ready_file))
    assert json.loads(ready_file.read_text()) == server.ready
    assert set(server.ready) == {"endpoint", "ipc", "run_dir", "topology", "token_file", "pids"}
    assert set(server.pids) == {"launcher", "front", "worker-0"}
    assert server.pids["launcher"] == server.pid
    assert server.ready["topology"] == "unified"
    assert stat.S_IMODE(server.run_dir.stat().st_mode) == 0o700
    for path in server.run_dir.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    for endpoint in (server.endpoint, server.ipc):
        with connected(endpoint) as peer:
            peer.generate("one", max_tokens=5, stream=False)
            assert len(peer.next_of("done", "error")["ids"]) == 5
    done = server.stop()
    assert done.code == 0
    first, *_ = done.messages
    assert first.startswith(
        f"ready on {server.endpoint} and {server.ipc} (topology=unified, 2 processes, "
    )
    assert not ready_file.exists()
    assert not server.run_dir.exists()


def test_only_loopback_is_listened_on(tiny_server: ServerProcess) -> None:
    listening = {
        connection.laddr.ip
        for pid in tiny_server.pids.values()
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_two_servers_live_side_by_side(tiny_server: ServerProcess, start_server: Start) -> None:
    other = start_server()
    assert other.endpoint != tiny_server.endpoint
    assert other.stop(signal.SIGINT).code == 0
    with connected(tiny_server.endpoint) as peer:
        peer.generate("still", max_tokens=2, stream=False)
        assert len(peer.next_of("done", "error")["ids"]) == 2


def test_sigterm_finishes_open_requests_and_refuses_new_ones(start_server: Start) -> None:
    server = start_server()
    with connected(server.endpoint) as peer:
        peer.generate("long", max_tokens=400)
        peer.next_of("tokens")
        server.process.send_signal(signal.SIGTERM)
        refused: dict[str, Any] | None = None
        number = 0
        while refused is None:
            peer.generate(f"late-{number}", max_tokens=1)
            answer = peer.next_of("accepted", "error", "done")
            if answer["type"] == "error":
                refused = answer
            number += 1
        assert refused["code"] == "draining"
        while (end := peer.next_of("done", "error"))["id"] != "long":
            pass
        assert (end["type"], end["finish"]) == ("done", "length")
        assert end["usage"]["completion_tokens"] == 400
    assert server.wait().code == 0


def wait_for_message(server: ServerProcess, text: str, seconds: float = 30.0) -> None:
    """Waits until the launcher has written the text, without moving its place in the file."""
    deadline = time.monotonic() + seconds
    file = server._stderr.fileno()
    while text not in os.pread(file, 1 << 20, 0).decode():
        assert time.monotonic() < deadline, f"{text!r} was not written within {seconds} s"
        time.sleep(0.01)


def test_second_signal_aborts_open_requests(start_server: Start) -> None:
    server = start_server("--num-speculative-tokens", "0")
    with connected(server.endpoint) as peer:
        for number in range(16):
            peer.generate(f"r{number}", max_tokens=500)
        for _ in range(16):
            peer.next_of("accepted")
        server.process.send_signal(signal.SIGTERM)
        wait_for_message(server, "draining")
        server.process.send_signal(signal.SIGTERM)
        ends = {(end := peer.next_of("done", "error"))["id"]: end.get("finish") for _ in range(16)}
    assert len(ends) == 16
    assert set(ends.values()) == {"abort"}
    assert server.wait().code == 0


@pytest.mark.parametrize("victim", ["worker-0", "front"])
def test_process_that_dies_ends_the_server_and_is_named(start_server: Start, victim: str) -> None:
    server = start_server("--max-restarts", "0")
    with connected(server.ipc) as peer:
        peer.generate("open", max_tokens=500)
        peer.next_of("tokens")
        os.kill(server.pids[victim], signal.SIGKILL)
        if victim == "worker-0":
            end = peer.next_of("error", "done", seconds=5)
            assert (end["type"], end["code"]) == ("error", "lane_failed")
    done = server.wait()
    assert done.code == 4
    assert any(f"{victim} was killed by SIGKILL" in message for message in done.messages)


def test_killed_launcher_leaves_no_process_and_the_next_one_cleans_up(start_server: Start) -> None:
    server = start_server()
    children = [psutil.Process(server.pids[name]) for name in ("front", "worker-0")]
    server.process.kill()
    server.process.wait()
    _, alive = psutil.wait_procs(children, timeout=2)
    assert not alive
    assert server.run_dir.exists()
    following = start_server()
    assert not server.run_dir.exists()
    following.stop()


# What goes wrong between the checks and the start is played by leaving a check out.


def run_unchecked(check: str, *arguments: str) -> Finished:
    """Runs ``pdv-launch`` without one of the checks of launcher/checks.py."""
    program = (
        "import sys, launcher.checks\n"
        f"launcher.checks.{check} = lambda *arguments: None\n"
        "from launcher.launch import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def test_checkpoint_that_only_the_worker_finds_damaged(tiny_pair: TinyPair, tmp_path: Path) -> None:
    pair = make_tiny_pair(tmp_path)
    weights = pair.draft / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    done = run_unchecked("check_weights", "--port", "0", *tiny_arguments(pair))
    assert done.code == 2
    (message,) = done.messages
    assert message.startswith("worker-0 could not start: ")
    assert "model.safetensors" in message
    assert "Traceback" not in done.stderr


def test_port_that_is_taken_after_the_check(tiny_pair: TinyPair) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run_unchecked("check_port", *tiny_arguments(tiny_pair), "--port", str(port))
    assert done.code == 2, done.stderr
    (message,) = done.messages
    assert f"--port {port} cannot be used on 127.0.0.1: address already in use" in message
    assert "Traceback" not in done.stderr


def test_a_ready_file_that_cannot_be_removed_changes_nothing_else(
    tiny_pair: TinyPair, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    with ServerProcess(*tiny_arguments(tiny_pair), "--ready-file", str(ready)) as server:
        server.wait_ready()
        ready.unlink()
        ready.mkdir()
        done = server.stop()
    assert done.code == 0, done.stderr
    assert any(f"--ready-file {ready} could not be removed" in text for text in done.messages)
    assert not server.run_dir.exists()


# What is found before any process starts: exit status 2, one sentence, nothing else.


def one_sentence(*arguments: str, **environment: str) -> str:
    done = run_launch(*arguments, environment=environment)
    assert done.code == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("pdv-launch: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prot", "5"], "'--port'"),
        (["--port", "99999"], "'--port': 99999 is not in the range"),
        (
            ["--host", "fe80::1%nosuch", "--insecure"],
            "--host fe80::1%nosuch is not an address of this machine",
        ),
        (["--port", "x"], "'--port': 'x' is not a valid integer."),
        (["--queue-factor", "x"], "'--queue-factor': 'x' is not a valid number."),
        (["--queue-factor", "nan"], "--queue-factor nan must be a finite number"),
        (["--queue-factor", "inf"], "'--queue-factor'"),
        (["--shutdown-timeout", "nan"], "--shutdown-timeout nan must be a finite number"),
        (["--shutdown-timeout", "inf"], "--shutdown-timeout inf must be a finite number"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--port"], "'--port' requires an argument"),
        (["extra"], "unexpected extra argument (extra)"),
        (["--topology", "auto"], "topology 'auto' is not one of unified, baseline"),
        (["--topology", "unifed"], "did you mean 'unified'?"),
        (["--host", "0.0.0.0"], "give a --token-file, whose token clients must then send, or --in"),
        (["--host", "::"], "--host :: lets other machines connect"),
        (["--host", "*"], "--host * lets other machines connect"),
        (["--host", "no where"], "'no where' is neither an IP address nor a name"),
        (["--host", "192.0.2.7", "--insecure"], "--host 192.0.2.7 is not an address of this mach"),
        (["--host", ""], "--host '' is neither an IP address nor a name"),
        (["--token-file", "/nowhere/token"], "--token-file /nowhere/token cannot be read"),
        (["--token-file", ""], "--token-file is empty"),
        (["--device", "tpu"], "--device 'tpu' is not a device; use auto, cpu or cuda:N"),
        (["--kv-cache-memory", "1X"], "'1X' is not a size"),
        (["--kv-cache-memory", "4K"], "--kv-cache-memory 4096 is too small"),
        (["--kv-handoff", "copy"], "--kv-handoff copy is for topologies with a prefill worker"),
        (
            ["--kv-handoff", "handle", "--topology", "baseline"],
            "in 'baseline' the worker that verifies computes prompts itself",
        ),
        (
            ["--kv-handoff", "copy", "--topology", "pd", "--kv-cache-memory", "100K"],
            "--kv-cache-memory 102400 is too small",
        ),
        (["--max-model-len", "513"], "max_model_len 513 exceeds the model's context of 512"),
        (["--config", "/nowhere/x.yaml"], "cannot read --config /nowhere/x.yaml: No such file"),
        (["--ready-file", "/nowhere/ready"], "the folder /nowhere does not exist"),
        (["--ready-fd", "77"], "--ready-fd 77 is not an open file descriptor"),
        (["--model", "/nowhere/model"], "/nowhere/model: no such folder"),
        (["--draft-model", "/nowhere/model"], "/nowhere/model: no such folder"),
    ],
)
def test_mistakes_are_one_sentence(tiny_pair: TinyPair, arguments: list[str], message: str) -> None:
    assert message in one_sentence(*tiny_arguments(tiny_pair, "--port", "0"), *arguments)


def test_port_that_is_taken_is_named(tiny_pair: TinyPair) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = one_sentence(*tiny_arguments(tiny_pair), "--port", str(port))
    assert f"--port {port} cannot be used on 127.0.0.1: address already in use" in message


def test_draft_with_another_vocabulary_is_refused(tiny_pair: TinyPair, tmp_path: Path) -> None:
    pair = make_tiny_pair(tmp_path)
    write_tokenizer(pair.draft, special="<|other|>")
    message = one_sentence(*tiny_arguments(pair))
    assert "has another vocabulary" in message


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ("config.json", None, "config.json is missing"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("model.safetensors", None, "no *.safetensors file"),
    ],
)
def test_model_that_cannot_be_served_is_refused(
    tmp_path: Path, file: str, values: dict[str, Any] | None, message: str
) -> None:
    pair = make_tiny_pair(tmp_path)
    path = pair.verifier / file
    if values is None:
        path.unlink()
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    assert message in one_sentence(*tiny_arguments(pair))


def test_weights_that_were_cut_short_are_refused(tmp_path: Path) -> None:
    pair = make_tiny_pair(tmp_path)
    weights = pair.draft / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors is damaged or cut short" in one_sentence(*tiny_arguments(pair))


def test_unknown_environment_variable_is_a_warning(tiny_pair: TinyPair) -> None:
    done = run_launch("--topology", "auto", environment={"PDV_PROT": "1"})
    assert done.code == 2
    assert done.messages == [
        "warning: environment variable PDV_PROT is not an option and is ignored; "
        "did you mean PDV_PORT?",
        "topology 'auto' is not one of unified, baseline, pd, pdv, pd-legacy, pdv-legacy",
    ]
