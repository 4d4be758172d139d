"""Where the server keeps its sockets: full, left over from the dead, wanted by two at once."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from conftest import tiny_arguments
from server_load import load
from server_process import Finished, ServerProcess
from tiny_model import TinyPair

Start = Callable[..., ServerProcess]

LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
from launcher.launch import main
main()
"""
"""``pdv-launch`` whose files, and those of its processes, can have so many bytes: past that a write
fails as on a full disk."""


def run_limited(limit: int, *arguments: str) -> Finished:
    # The pipes are no files, so what it says is not limited.
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *arguments, "--port", "0"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("limit", [0, 1000], ids=["lock", "configuration"])
def test_a_full_disk_is_found_before_any_process_starts(
    tiny_pair: TinyPair, run_place: tuple[str, Path], limit: int
) -> None:
    done = run_limited(limit, *tiny_arguments(tiny_pair))
    assert done.code == 2
    assert done.stderr == (
        f"pdv-launch: cannot write to the folder for sockets in {run_place[1]}: file too large; "
        "set XDG_RUNTIME_DIR to another one\n"
    )


def test_a_disk_that_is_full_when_a_process_starts(
    tiny_pair: TinyPair, run_place: tuple[str, Path]
) -> None:
    # Room for the configuration, not for the record of so many slots.
    arguments = tiny_arguments(tiny_pair, "--max-num-seqs", "1000", "--max-model-len", "64")
    done = run_limited(8000, *arguments)
    assert done.code == 3
    (message,) = done.messages
    assert message.startswith(f"worker-0 could not start: {run_place[1]}/pdv-")
    assert message.endswith(
        "/batch-worker-0.0 cannot be written: file too large; make room, or set XDG_RUNTIME_DIR "
        "to a folder that has some"
    )
    assert "Traceback" not in done.stderr


def test_a_disk_that_is_full_when_a_process_starts_again(start_server: Start) -> None:
    server = start_server()
    # What the launcher may write is what its next children may write.
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    with load(server) as client:
        client.generate("a", prompt_ids=[20, 21], max_tokens=500, ignore_eos=True)
        client.until(lambda: client.received > 10)
        psutil.Process(server.pids["worker-0"]).kill()
        client.until_all_ended()
        assert (client.last["a"]["code"], client.last["a"]["retryable"]) == ("lane_failed", True)
    assert server.wait().code == 4


def test_two_launchers_want_the_same_port(tiny_pair: TinyPair) -> None:
    """One serves, whichever is first; the other says why it does not, and leaves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = tiny_arguments(tiny_pair, "--topology", "pd")
    with (
        ServerProcess(*arguments, port=port) as one,
        ServerProcess(*arguments, port=port) as other,
    ):
        with ThreadPoolExecutor(2) as threads:
            starts = [threads.submit(server.wait_ready) for server in (one, other)]
            failures = [start.exception() for start in starts]
        assert failures.count(None) == 1
        served, refused = (one, other) if failures[0] is None else (other, one)
        with load(served) as client:
            client.generate("a", prompt_ids=[20, 21], max_tokens=5, ignore_eos=True)
            client.until_all_ended()
            assert client.last["a"]["finish"] == "length"
        assert served.stop().code == 0
        done = refused.wait()
    assert done.code == 2, done.stderr
    (message,) = done.messages
    assert f"--port {port} cannot be used on 127.0.0.1: address already in use" in message
    assert "Traceback" not in done.stderr
