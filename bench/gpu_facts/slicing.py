"""How a GPU is shared between processes that are both busy: slices of time, and priorities."""

from __future__ import annotations

import threading
import time

import torch

from bench.gpu_facts import gpu
from bench.gpu_facts.facts import Report
from bench.gpu_facts.peers import Peer, Talk
from bench.gpu_facts.speed import kernel_gaps

LONG_GAP_US = 500.0
"""A small kernel that ends so long after the one before it has had to wait for another process."""

_MATRIX = 4096
_AHEAD = 8


def measure_slices(report: Report) -> None:
    """Gaps between small kernels of one process, alone and beside one that multiplies matrices."""
    count = report.repeats(5000, 1000)
    with Peer("short") as short, Peer("busy") as busy:
        _report_gaps(report, "alone", short.ask(gaps=count)["gaps"])
        busy.ask(start=True)
        _report_gaps(report, "beside a busy process", short.ask(gaps=count)["gaps"])
        busy.ask(pause=True)


def _report_gaps(report: Report, label: str, gaps: list[float]) -> None:
    report.numbers(f"kernel to kernel, {label}", "µs", gaps)
    long = [gap / 1000 for gap in gaps if gap > LONG_GAP_US]
    if long:
        report.numbers(f"gaps above {LONG_GAP_US:g} µs, {label}", "ms", long)
    else:
        report.text(f"gaps above {LONG_GAP_US:g} µs, {label}", "none")


def measure_priorities(report: Report) -> None:
    """Twenty small kernels and a wait, beside products of matrices on a stream of priority 0."""
    repeats = report.repeats(300, 30)
    busy = _Busy()
    report.numbers("alone", "µs", short_steps(0, repeats))
    busy.start()
    try:
        for priority in (0, -1):
            report.numbers(
                f"beside a busy stream of this process, priority {priority}",
                "µs",
                short_steps(priority, repeats),
            )
    finally:
        busy.pause()
    with Peer("busy") as other:
        other.ask(start=True)
        for priority in (0, -1):
            report.numbers(
                f"beside a busy process, priority {priority}", "µs", short_steps(priority, repeats)
            )
        other.ask(pause=True)


def short_steps(priority: int, repeats: int) -> list[float]:
    """Microseconds of steps on a stream of that priority."""
    stream = gpu.stream(priority)
    found = []
    with torch.cuda.stream(stream):
        values = torch.zeros(1 << 16, device=gpu.device())
        for _ in range(repeats + 3):
            started = time.perf_counter_ns()
            for _ in range(20):
                values.add_(1)
            stream.synchronize()
            found.append((time.perf_counter_ns() - started) / 1000)
    return found[3:]


class _Busy:
    """A thread that keeps the GPU busy on a stream of its own between start and pause."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Returns when the GPU is busy."""
        running = threading.Event()
        self._wanted.set()
        self._thread = threading.Thread(target=self._run, args=(running,), daemon=True)
        self._thread.start()
        if not running.wait(60):
            raise RuntimeError("the busy thread does not start")

    def pause(self) -> None:
        """Returns when it has stopped."""
        self._wanted.clear()
        if self._thread is not None:
            self._thread.join()

    def _run(self, running: threading.Event) -> None:
        with torch.cuda.stream(gpu.stream()):
            matrix = torch.zeros(_MATRIX, _MATRIX, dtype=torch.bfloat16, device=gpu.device())
            events = [gpu.event() for _ in range(_AHEAD)]
            turn = 0
            while self._wanted.is_set():
                torch.mm(matrix, matrix)
                # Always a few products ahead, and not more, so that it stops at once.
                events[turn % _AHEAD].record()
                turn += 1
                if turn >= _AHEAD:
                    events[turn % _AHEAD].synchronize()
                    running.set()


def busy_peer(talk: Talk) -> None:
    """Be busy between start and pause."""
    busy = _Busy()
    while "stop" not in (order := talk.receive()):
        if "start" in order:
            busy.start()
        else:
            busy.pause()
        talk.send(done=True)


def short_peer(talk: Talk) -> None:
    """Run small kernels when asked."""
    kernel_gaps(10)
    while "stop" not in (order := talk.receive()):
        talk.send(gaps=kernel_gaps(order["gaps"]))
