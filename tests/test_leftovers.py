"""The check that every test ends with does find what is left behind."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

from leftovers import Leftovers


def test_process_file_and_shared_memory_are_found(run_place: tuple[str, Path]) -> None:
    leftovers = Leftovers(*run_place)
    assert leftovers.check(0) == []
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    file = run_place[1] / "socket"
    file.touch()
    shared = Path("/dev/shm") / f"psm_{uuid.uuid4().hex}"
    shared.touch()
    try:
        left = leftovers.check(0.1)
    finally:
        shared.unlink()
        file.unlink()
        process.communicate(b"\n")
    assert [line.split(":")[0] for line in left] == ["processes", "files", "shared memory"]
    assert f"{process.pid}: {sys.executable} -c input()" in left[0]
    assert leftovers.check() == []
