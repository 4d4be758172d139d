"""The rates of the CPU at hand, measured in a process with the server's number of threads:
``python -m bench.roofline.machine THREADS`` prints a line of JSON, and one more for each line that
it reads."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from types import TracebackType

from bench.inflate.shapes import SHAPES
from bench.roofline.models import ModelCost
from bench.roofline.rates import Rates

BUFFER_BYTES = 256 << 20
"""More than any cache holds."""

MATRIX = 2048
ROWS, CONTEXT = 128, 16
SECONDS = 0.6
"""Each rate is the best of repetitions over this time: others on the machine only take away."""

MOMENT_SECONDS = 0.12
"""The same where rates are measured again and again, since they change."""

WAIT_SECONDS = 120.0
END_SECONDS = 5.0


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


class MachineProbe:
    """Measures in a process of its own, as often as it is asked to; a context manager.

    ``first``: what was measured with plenty of time, None if that failed.
    """

    def __init__(self, threads: int) -> None:
        self._process: subprocess.Popen[str] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.roofline.machine", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                bufsize=1,
            )
        self.first = self._answer()

    def now(self) -> MachineRates | None:
        """The rates of this moment, within half a second; None once the process has failed."""
        try:
            if self._process is None or self._process.stdin is None:
                return None
            self._process.stdin.write("\n")
        except OSError:
            self.close()
        return self._answer()

    def _answer(self) -> MachineRates | None:
        if self._process is None or self._process.stdout is None:
            return None
        try:
            if select.select([self._process.stdout], [], [], WAIT_SECONDS)[0]:
                return MachineRates(**json.loads(self._process.stdout.readline()))
        except (OSError, ValueError, TypeError):
            pass
        self.close()
        return None

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> MachineProbe:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def measure(threads: int) -> MachineRates | None:
    """Once; None where that fails."""
    with MachineProbe(threads) as probe:
        return probe.first


class Machine:
    """Measures this process, which then has that many threads."""

    def __init__(self, threads: int) -> None:
        import torch

        from bench.roofline.profile import Profiler, Step
        from pdv_mp.memory.huge_pages import huge_buffer
        from pdv_mp.model.native.library import NativeError

        torch.set_num_threads(threads)
        self._threads = threads
        # Pages as large as those of our weights: small ones cost a tenth.
        source, target = (huge_buffer(BUFFER_BYTES).view(torch.float32).fill_(1) for _ in range(2))
        left, right = torch.ones(MATRIX, MATRIX), torch.ones(MATRIX, MATRIX)
        self._read: Callable[[], object] = source.sum
        self._copy: Callable[[], object] = lambda: target.copy_(source)
        self._products: list[Callable[[float], float]] = [
            lambda seconds: 2 * MATRIX**3 / _best(lambda: left @ right, seconds)
        ]
        config = replace(SHAPES["tinyllama-1.1b"].parse(), num_layers=1, vocab_size=1024)
        cost = ModelCost.of(config)
        operations = 2 * (cost.layer_weights + cost.head_weights) * ROWS
        with contextlib.suppress(NativeError):
            profiler = Profiler(config, 1, CONTEXT + ROWS)
            # Of a prompt the last layer would be computed for its last row alone.
            step = Step(1, ROWS, CONTEXT)

            def ours(seconds: float) -> float:
                best, end = 0.0, time.perf_counter() + seconds
                while time.perf_counter() < end:
                    timing = profiler.time(step)
                    best = max(best, operations / (timing.seconds * timing.products))
                return best

            self._products.append(ours)

    def measure(self, seconds: float = SECONDS) -> MachineRates:
        """Each rate in so many seconds."""
        read, copy = self._memory(seconds)
        return MachineRates(self._threads, read, copy, self.flops(seconds))

    def bandwidth(self, seconds: float) -> float:
        """Bytes/s, the better of reading and copying."""
        return max(self._memory(seconds))

    def flops(self, seconds: float) -> float:
        """Operations/s. From the second time on of the quicker products alone."""
        import torch

        with torch.inference_mode():
            flops = [products(seconds) for products in self._products]
        self._products = [self._products[flops.index(max(flops))]]
        return max(flops)

    def _memory(self, seconds: float) -> tuple[float, float]:
        """Read, and copied."""
        import torch

        with torch.inference_mode():
            read = BUFFER_BYTES / _best(self._read, seconds)
            return read, 2 * BUFFER_BYTES / _best(self._copy, seconds)


def _best(action: Callable[[], object], seconds: float) -> float:
    """Seconds of the quickest of several."""
    action()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    machine = Machine(int(sys.argv[1]))
    print(json.dumps(asdict(machine.measure())), flush=True)
    for _ in sys.stdin:
        print(json.dumps(asdict(machine.measure(MOMENT_SECONDS))), flush=True)


if __name__ == "__main__":
    main()
