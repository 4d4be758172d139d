"""The programs of ``examples/`` against a real server."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import ServerProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NODE = EXAMPLES / "node"
SECONDS = 100


def run(*command: str, folder: Path = EXAMPLES) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done


def test_the_clients_in_python_stream(tiny_server: ServerProcess) -> None:
    done = run(sys.executable, "python/blocking_client.py", tiny_server.ipc)
    assert done.stdout.startswith("[verifier on unified]\n")
    assert "'class Stack:\\n' -> " in done.stdout
    done = run(sys.executable, "python/asyncio_client.py", tiny_server.endpoint)
    assert done.stdout.count(" pieces)\n") == 3


def test_the_client_in_node_streams(tiny_server: ServerProcess) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (NODE / "node_modules" / "zeromq").is_dir():
        pytest.skip("run npm install in examples/node first")
    done = run(node, "client.mjs", "def add(", tiny_server.endpoint, folder=NODE)
    assert done.stderr.startswith("[verifier on unified, version ")
    assert "draft tokens kept]" in done.stderr
    assert done.stdout
