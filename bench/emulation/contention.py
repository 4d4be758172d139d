"""How much longer a step takes on a CPU while another process computes, too.

Two processes have cores of their own, but share the memory, the last cache and the heat. The other
one is a copy of this process, made by ``fork``, so that both read the same weights, as the workers
of a server do.
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from bench.emulation.calibration import Stopwatch
from pdv_mp.process import die_with_parent

Point = tuple[str, int, int, int]
"""A step's name, its sequences, rows of each, and tokens before them."""


def measure_contention(stopwatch: Stopwatch, points: list[Point], rounds: int) -> float:
    """The mean factor (geometric, 1 or more) over steps that are timed in turn alone and beside a
    process that computes all of them again and again."""
    factors: list[list[float]] = [[] for _ in points]
    with _neighbour(stopwatch, points) as pid:
        for turn in range(rounds):
            times = {}
            for beside in (turn % 2 == 0, turn % 2 == 1):
                os.kill(pid, signal.SIGCONT if beside else signal.SIGSTOP)
                times[beside] = [_second_of_two(stopwatch, point) for point in points]
            for place, factor in enumerate(factors):
                factor.append(times[True][place] / times[False][place])
    logarithms = [math.log(statistics.median(factor)) for factor in factors]
    return max(1.0, math.exp(statistics.fmean(logarithms)))


def _second_of_two(stopwatch: Stopwatch, point: Point) -> float:
    """Microseconds of a step right after another one like it."""
    stopwatch.microseconds(*point)
    return max(1e-3, stopwatch.microseconds(*point) or 0.0)


@contextmanager
def _neighbour(stopwatch: Stopwatch, points: list[Point]) -> Iterator[int]:
    """The id of a process that computes until then. Raises RuntimeError if it ended before."""
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        _compute(stopwatch, points, parent)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError("the process that computed beside this one ended by itself")


def _compute(stopwatch: Stopwatch, points: list[Point], parent: int) -> NoReturn:
    """Until this process is killed, which its parent's death does, too."""
    try:
        die_with_parent(parent)
        while True:
            for point in points:
                stopwatch.microseconds(*point)
    finally:
        traceback.print_exc()  # only an error brings it here
        os._exit(1)
