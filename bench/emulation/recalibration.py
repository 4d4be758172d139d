"""A calibrated cost table with the times of this moment.

On shared machines the same step may take a third longer than ten seconds before, without anybody
else on the same system. Servers can be compared with what a table says of them only where both are
of the same minutes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.results.store import ResultsError
from pdv_mp.emulation.cost_table import CostTable, read_cost_table

ROUNDS = 3
WAIT_SECONDS = 600.0


def recalibrated(table: CostTable, options: Mapping[str, str], scratch: Path) -> CostTable:
    """Its steps are timed again by ``pdv-bench calibrate``, with the ``options`` that it was made
    with; name and acceptance stay. Raises ResultsError if that fails, with what was said."""
    output = scratch / "recalibrated.json"
    command = [sys.executable, "-m", "bench.cli", "calibrate"]
    command += ["--acceptance", str(table.acceptance), "--name", table.name]
    command += ["--rounds", str(ROUNDS), "--output", str(output)]
    if table.overlap:
        command.append("--overlap")
    for name, value in options.items():
        command += ["--option", f"{name}={value}"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ResultsError(f"the CPU could not be calibrated again: {error}") from error
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise ResultsError(f"the CPU could not be calibrated again: {said or done.returncode}")
    return read_cost_table(output)
