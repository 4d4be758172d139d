"""Where the server keeps its sockets: full, left over from the dead, wanted by two at once."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from conftest import tiny_arguments
from server_load import load
from server_process import LAUNCH, Finished, ServerProcess
from tiny_model import TinyPair

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


SMALL_DISK = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
MOUNT = 'mount -t tmpfs -o size="$0" small "$XDG_RUNTIME_DIR" && exec "$@"'


@pytest.fixture
def small_disk() -> Iterator[Callable[[str], list[str]]]:
    """``small_disk(size)`` begins a command line whose processes have a disk of that size for their
    run directory, in a namespace of their own."""
    # Not in pytest's folder, whose name is too long for the paths of sockets.
    with (
        tempfile.TemporaryDirectory(prefix="pdvfull-") as folder,
        pytest.MonkeyPatch.context() as m,
    ):
        m.setenv("XDG_RUNTIME_DIR", folder)
        if subprocess.run([*SMALL_DISK, MOUNT, "4k", "true"], check=False).returncode:
            pytest.skip("this system does not let its users mount a disk in a namespace")
        yield lambda size: [*SMALL_DISK, MOUNT, size]


def test_a_disk_that_is_full_when_a_process_starts(
    tiny_pair: TinyPair, small_disk: Callable[[str], list[str]]
) -> None:
    # Room for the lock and the configuration.
    with ServerProcess(*tiny_arguments(tiny_pair), command=[*small_disk("8k"), *LAUNCH]) as server:
        with pytest.raises(RuntimeError):
            server.wait_ready()
        done = server.wait()
    assert done.code == 3
    (message,) = done.messages
    assert message.startswith(f"worker-0 could not start: {os.environ['XDG_RUNTIME_DIR']}/pdv-")
    assert message.endswith(
        "/batch-worker-0.0 cannot be written: no space left on device; make room, or set "
        "XDG_RUNTIME_DIR to a folder that has some"
    )
    assert "Traceback" not in done.stderr


def fill_up(path: Path) -> None:
    """Writes a file until its disk is full."""
    try:
        with path.open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017 - there is no other way out


def test_a_disk_that_fills_up_costs_no_request(
    tiny_pair: TinyPair, small_disk: Callable[[str], list[str]]
) -> None:
    """A worker that dies leaves the room that its successor needs."""
    command = [*small_disk("64k"), *LAUNCH]
    with ServerProcess(*tiny_arguments(tiny_pair), command=command) as server:
        server.wait_ready()
        fill_up(Path(f"/proc/{server.pid}/root{server.run_dir}/filler"))
        with load(server, server.endpoint) as client:
            client.generate("a", prompt_ids=[20, 21], max_tokens=500, ignore_eos=True)
            client.until(lambda: client.received > 10)
            psutil.Process(server.pids["worker-0"]).kill()
            client.until_all_ended()
            assert client.last["a"]["finish"] == "length"
        done = server.stop()
    assert done.code == 0
    assert any(
        line.endswith("ready.json keeps an old process id: No space left on device")
        for line in done.messages
    ), done.stderr


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
