"""What a worker was working on is known whatever ended it."""

from __future__ import annotations

import os
import signal
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pdv_mp.workers.flight_record import FlightRecord, record_path, take_record

PROGRAM = """
import os, signal, sys
from pathlib import Path
from pdv_mp.workers.flight_record import FlightRecord
record = FlightRecord(Path(sys.argv[1]), 8)
record.enter([3, 2**40, 5])
if sys.argv[2] == "left":
    record.leave()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("how", "batch"), [("inside", {3, 2**40, 5}), ("left", set())])
def test_the_record_of_a_killed_process_is_read_once(
    tmp_path: Path, how: str, batch: set[int]
) -> None:
    path = record_path(tmp_path, "worker-0", 3)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path), how], check=False)
    assert done.returncode == -signal.SIGKILL
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert take_record(path) == batch
    assert not path.exists()
    assert take_record(path) == frozenset()


def test_a_full_batch_and_an_empty_one(tmp_path: Path) -> None:
    record = FlightRecord(tmp_path / "a", 4)
    record.enter([1, 2, 3, 4])
    record.enter([])
    record.enter([7, 8, 9, 10])
    record.close()
    assert take_record(tmp_path / "a") == {7, 8, 9, 10}


@pytest.mark.parametrize(
    "data", [b"", b"x", struct.pack("=q", 1), struct.pack("=2q", -1, 5), struct.pack("=2q", 2, 5)]
)
def test_a_damaged_record_names_nobody(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    assert take_record(path) == frozenset()


def test_a_full_disk_is_an_error_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        FlightRecord(tmp_path / "a", 4)
