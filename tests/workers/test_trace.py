"""What processes record for ``--trace``: a file of bounded size that survives its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pdv_mp.wire.frames import Stamps
from pdv_mp.workers.trace import BATCH, MESSAGE, PART_PREFIX, RECORD, Trace, read_parts


def test_records_come_back_in_their_order(tmp_path: Path) -> None:
    trace = Trace(tmp_path / f"{PART_PREFIX}verify-0.2", capacity=8)
    trace.batch("verify", (1, 2, 3), 4, 5, 6)
    trace.message("draft>verify", Stamps(10, 20, 30, 40, 50), replica=3)
    trace.close()
    (part,) = read_parts(tmp_path)
    assert (part.process, part.generation, part.lost) == ("verify-0", 2, 0)
    assert part.records.tolist() == [
        (BATCH, 2, 0, 4, 5, 6, 1, 2, 3, 0),
        (MESSAGE, 5, 3, 50, 0, 0, 10, 20, 30, 40),
    ]


def test_the_oldest_records_are_overwritten(tmp_path: Path) -> None:
    path = tmp_path / f"{PART_PREFIX}front.0"
    trace = Trace(path, capacity=8)
    size = path.stat().st_size
    for number in range(21):
        trace.batch("text", (number, number, number), 1, 1)
    trace.close()
    assert path.stat().st_size == size
    (part,) = read_parts(tmp_path)
    assert part.lost == 13
    assert part.records["stamp0"].tolist() == list(range(13, 21))


@pytest.mark.parametrize("kept", [0, 10, 24, 24 + 3 * RECORD.itemsize + 7])
def test_a_part_that_is_not_whole_counts_as_empty(tmp_path: Path, kept: int) -> None:
    path = tmp_path / f"{PART_PREFIX}front.0"
    trace = Trace(path, capacity=8)
    trace.batch("text", (1, 2, 3), 1, 1)
    trace.close()
    os.truncate(path, kept)
    (part,) = read_parts(tmp_path)
    assert len(part.records) == 0


def test_records_of_a_process_that_was_killed_are_kept(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pdv_mp.workers.trace import Trace\n"
        "trace = Trace(Path(sys.argv[1]))\n"
        "trace.batch('draft', (1, 2, 3), 4, 5)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / f"{PART_PREFIX}draft-0.0"
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (part,) = read_parts(tmp_path)
    assert part.records["stamp2"].tolist() == [3]
