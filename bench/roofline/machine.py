"""The rates of the CPU at hand, measured in a process with the server's number of threads:
``python -m bench.roofline.machine THREADS``, one line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from bench.inflate.shapes import SHAPES
from bench.roofline.models import ModelCost
from bench.roofline.rates import Rates

BUFFER_BYTES = 256 << 20
"""More than any cache holds."""

MATRIX = 2048
ROWS, CONTEXT = 128, 16
SECONDS = 0.6
"""Each rate is the best of repetitions over this time: others on the machine only take away."""

WAIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class MachineRates:
    """Bytes/s that are read, and that are copied (read and written both count), and float32
    operations/s of matrix products, with so many threads: PyTorch's or our kernels', whichever are
    quicker, since libraries favour some makers' CPUs."""

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
            flops=max(2 * MATRIX**3 / _best(lambda: left @ right), kernel_flops()),
        )


def kernel_flops() -> float:
    """Operations/s of the products in a step of our kernels; 0 where there are none."""
    from bench.roofline.profile import Profiler, Step
    from pdv_mp.model.native.library import NativeError

    config = replace(SHAPES["tinyllama-1.1b"].parse(), num_layers=1, vocab_size=1024)
    try:
        profiler = Profiler(config, Rates("", 1.0, 1.0), 1, CONTEXT + ROWS)
    except NativeError:
        return 0.0
    cost = ModelCost.of(config)
    operations = 2 * (cost.layer_weights + cost.head_weights) * ROWS
    best, end = 0.0, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        # Of a prompt the last layer would be computed for its last row alone.
        profile = profiler(Step(1, ROWS, CONTEXT))
        best = max(best, operations / (profile.seconds * profile.products))
    return best


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
