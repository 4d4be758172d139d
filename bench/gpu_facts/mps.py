"""NVIDIA's Multi-Process Service, where it can be started without changing the GPU's settings.

The control program is started in the foreground, with private directories, and told to quit at the
end. Compute mode, persistence and MIG stay as they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.gpu_facts.facts import Report
from bench.gpu_facts.ipc import share_between_peers
from bench.gpu_facts.overlap import compare_processes

PROGRAM = "nvidia-cuda-mps-control"
DEFAULT_PIPE = Path("/tmp/nvidia-mps/control")  # where a daemon of somebody else's listens
_START_SECONDS = 10.0
_COMMAND_SECONDS = 20.0


class NotTried(Exception):
    """MPS cannot be started here; the message says why."""


def measure_mps(report: Report) -> None:
    """The overlap index of two processes that are clients of one MPS server."""
    try:
        with _service() as environment:
            share_between_peers(report, environment, "memory shared between clients")

            def check(pids: list[int]) -> None:
                clients = _clients(environment)
                if len(clients) < len(pids):
                    raise RuntimeError(f"MPS has the clients {clients}, not the processes {pids}")

            compare_processes(report, environment, ", MPS", check)
    except NotTried as reason:
        report.text("MPS", f"not tried: {reason}")


@contextmanager
def _service() -> Iterator[dict[str, str]]:
    """What its clients need in their environment, while it runs."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise NotTried(f"{PROGRAM} is not installed")
    if "CUDA_MPS_PIPE_DIRECTORY" in os.environ or DEFAULT_PIPE.exists():
        raise NotTried("an MPS daemon of somebody else's may be running")
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        daemon = subprocess.Popen(
            [program, "-f"],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(daemon, environment)
            yield environment
            _command(environment, "quit")
            daemon.wait(_COMMAND_SECONDS)
        finally:
            daemon.kill()
            daemon.wait()


def _wait_for(daemon: subprocess.Popen[bytes], environment: Mapping[str, str]) -> None:
    """Until it answers, which is the only sign that it gives. Raises NotTried if it does not."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        if daemon.poll() is not None:
            raise NotTried(f"{PROGRAM} -f ends with status {daemon.returncode}")
        try:
            _command(environment, "get_server_list")
            return
        except (subprocess.SubprocessError, OSError) as error:
            if time.monotonic() > deadline:
                raise NotTried(f"{PROGRAM} does not answer: {error}") from error
            time.sleep(0.1)


def _clients(environment: Mapping[str, str]) -> list[int]:
    found = []
    for server in _command(environment, "get_server_list").split():
        found += [int(pid) for pid in _command(environment, f"get_client_list {server}").split()]
    return found


def _command(environment: Mapping[str, str], command: str) -> str:
    done = subprocess.run(
        [PROGRAM],
        input=command + "\n",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=_COMMAND_SECONDS,
        check=True,
    )
    return done.stdout
