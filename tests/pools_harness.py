"""Real processes around shared pools: the pools process itself, and workers that obey a test."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from pdv_mp.config import EngineConfig
from pdv_mp.control import control_endpoint
from pdv_mp.process import CONFIG_FILE
from pdv_mp.topology import ROWS
from pdv_mp.wire.control import (
    Bye,
    ControlMessage,
    Failed,
    Hello,
    Progress,
    Ready,
    Received,
    Stop,
    SupervisorMessage,
    decode_control,
    encode_control,
)

WAIT_SECONDS = 60.0
_CHILD = Path(__file__).with_name("pools_child.py")


def pools_config(topology: str, verifier: Path, draft: Path | None, **options: Any) -> EngineConfig:
    """A configuration of a row whether or not it can be served yet."""
    settings = {"device": "cpu", **options}
    config = EngineConfig.from_options(
        model=str(verifier), draft_model=str(draft or "none"), **settings
    )
    return dataclasses.replace(config, topology=topology, table=ROWS[topology])


class PoolsHarness:
    """A run directory with a supervisor's socket, and the processes that a test starts in it."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.run_dir = Path(tempfile.mkdtemp(dir=os.environ.get("XDG_RUNTIME_DIR")))
        self.write_config(config)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(control_endpoint(self.run_dir))
        self._identities: dict[str, bytes] = {}
        self._heard: list[tuple[str, ControlMessage]] = []
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self._started: list[subprocess.Popen[str]] = []

    def write_config(self, config: EngineConfig) -> None:
        """What processes that are started from now on read."""
        (self.run_dir / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")

    def __enter__(self) -> PoolsHarness:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._started:
            process.kill()
            process.wait(WAIT_SECONDS)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._router.close(0)
        self._context.term()
        shutil.rmtree(self.run_dir)

    def start_pools(self, *, wait: bool = True) -> Ready | None:
        """Start the pools process as the supervisor does; its report when it is ready."""
        options = (f"--run-dir={self.run_dir}", f"--parent-pid={os.getpid()}")
        self.processes["pools"] = subprocess.Popen(
            [sys.executable, "-m", "pdv_mp.process", "pools", *options],
            text=True,
        )
        self._started.append(self.processes["pools"])
        if not wait:
            return None
        ready = self.await_message("pools", Ready)
        assert isinstance(ready, Ready)
        return ready

    def start_worker(self, name: str) -> PoolsWorker:
        """Start a worker; it attaches by itself."""
        process = subprocess.Popen(
            [sys.executable, str(_CHILD), name, str(self.run_dir), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes[name] = process
        self._started.append(process)
        return PoolsWorker(process)

    def await_message(self, name: str, kind: type[Any]) -> ControlMessage:
        """The next message of that kind from that process; a last message is acknowledged."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            for number, (sender, message) in enumerate(self._heard):
                if sender == name and isinstance(message, kind):
                    del self._heard[number]
                    return message
            left = deadline - time.monotonic()
            assert left > 0, f"no {kind.__name__} from {name}"
            if self._router.poll(int(left * 1000) + 1):
                self._receive()

    def _receive(self) -> None:
        identity, frame = self._router.recv_multipart()
        message = decode_control(frame)
        if isinstance(message, (Hello, Ready, Failed, Progress, Bye)):
            self._identities[message.name] = identity
            self._heard.append((message.name, message))
        if isinstance(message, (Bye, Failed)):
            self._router.send_multipart([identity, encode_control(Received())])

    def send(self, name: str, message: SupervisorMessage) -> None:
        """What the supervisor would send."""
        self._router.send_multipart([self._identities[name], encode_control(message)])

    def stop_pools(self) -> int:
        """Ask the pools process to leave; its exit status."""
        self.send("pools", Stop())
        self.await_message("pools", Bye)
        return self.processes["pools"].wait(WAIT_SECONDS)


class PoolsWorker:
    """A worker process, which does what it is asked line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def attached(self) -> dict[str, Any]:
        """What it says when it has attached, or been told to stop."""
        return dict(self._line())

    def ask(self, command: str, *arguments: Any) -> Any:
        """The result of a method of pools_child.Commands."""
        self.tell(command, *arguments)
        return self._line()

    def tell(self, command: str, *arguments: Any) -> None:
        """Ask without waiting for the result."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self.process.stdin.flush()

    def leave(self) -> int:
        """Let it end; its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(WAIT_SECONDS)

    def _line(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker has ended with {self.process.wait(WAIT_SECONDS)}"
        return json.loads(line)
