"""The rates of the CPU at hand, measured in a process with the server's number of threads:
``python -m bench.roofline.machine THREADS``, one line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from bench.roofline.rates import Rates

BUFFER_BYTES = 256 << 20
"""More than any cache holds."""

MATRIX = 2048
SECONDS = 0.6
"""Each rate is the best of repetitions over this time: others on the machine only take away."""

WAIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class MachineRates:
    """Bytes/s that are read, and that are copied (read and written both count), and float32
    operations/s of a matrix product, with so many threads."""

    threads: int
    read: float
    copy: float
    flops: float

    @property
    def rates(self) -> Rates:
        """For bounds. A step reads: the better of the two bandwidths counts."""
        return Rates(f"this CPU with {self.threads} threads", max(self.read, self.copy), self.flops)


def measure(threads: int) -> MachineRates | None:
    """In a process of its own; None where that fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.roofline.machine", str(threads)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=True,
        )
        return MachineRates(**json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None


def rates_here(threads: int) -> MachineRates:
    """Of this process, which then has that many threads."""
    import torch

    torch.set_num_threads(threads)
    numbers = BUFFER_BYTES // 4
    source, target = torch.ones(numbers), torch.empty(numbers)
    left, right = torch.ones(MATRIX, MATRIX), torch.ones(MATRIX, MATRIX)
    with torch.inference_mode():
        return MachineRates(
            threads=threads,
            read=BUFFER_BYTES / _best(lambda: source.sum()),
            copy=2 * BUFFER_BYTES / _best(lambda: target.copy_(source)),
            flops=2 * MATRIX**3 / _best(lambda: left @ right),
        )


def _best(action: Callable[[], object]) -> float:
    """Seconds of the quickest of several."""
    action()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return best


if __name__ == "__main__":
    print(json.dumps(asdict(rates_here(int(sys.argv[1])))))
