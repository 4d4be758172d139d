"""``bench.load.usage`` and ``bench.load.gpu``: what processes and GPUs use is told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from bench.load.errors import LoadError
from bench.load.gpu import PERIOD_SECONDS, GpuSampler
from bench.load.usage import Processes, Sample, Spent, others, uses
from bench.results.records import GpuUse


def test_context_switches_of_all_threads_count() -> None:
    """The kernel counts them by thread; those of a process's first thread are not all."""
    processes = Processes({"self": os.getpid()})
    before = processes.sample()
    rested = threading.Event()
    measured = threading.Event()

    def rest() -> None:
        for _ in range(200):
            time.sleep(1e-4)
        rested.set()
        measured.wait(30)

    thread = threading.Thread(target=rest)
    thread.start()
    rested.wait(30)
    after = processes.sample()
    measured.set()
    thread.join()
    use = uses(before, after, processes.memory())["self"]
    assert use.voluntary_switches >= 200
    assert 0 <= use.cores < 16
    assert use.rss_bytes > 2**20
    assert others(before, after) >= 0


def test_shares_are_of_the_time_between_two_samples() -> None:
    before = Sample(10**9, {"a": Spent(1.0, 5, 6), "b": Spent(2.0, 0, 0)}, 100.0)
    after = Sample(3 * 10**9, {"a": Spent(2.0, 9, 7), "b": Spent(2.5, 0, 0)}, 105.5)
    found = uses(before, after, {"a": (7, 3), "b": (8, None)})
    assert (found["a"].cores, found["b"].cores) == (0.5, 0.25)
    assert (found["a"].voluntary_switches, found["a"].involuntary_switches) == (4, 1)
    assert (found["a"].pss_bytes, found["b"].pss_bytes) == (3, None)
    assert others(before, after) == 2.0


def test_a_process_that_has_ended_is_named() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    processes = Processes({"worker-7": child.pid})
    for ask in (processes.sample, processes.memory):
        with pytest.raises(LoadError, match=rf"worker-7 \({child.pid}\) of the server has ended"):
            ask()


class NVMLError(Exception):
    pass


def nvml(monkeypatch: pytest.MonkeyPatch, **functions: object) -> list[str]:
    """In place of pynvml; returns what was called."""
    calls: list[str] = []
    fields = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: calls.append("init"),
        "nvmlShutdown": lambda: calls.append("shutdown"),
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: f"GPU {handle}",
        **functions,
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**fields))
    return calls


def test_gpus_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    enough = threading.Event()
    busy, memory = iter([20, 60]), iter([5 << 30, 3 << 30])

    def utilization(handle: int) -> SimpleNamespace:
        if handle == 1:
            raise NVMLError("not supported")
        try:
            return SimpleNamespace(gpu=next(busy))
        except StopIteration:
            enough.set()
            raise NVMLError("no more") from None

    calls = nvml(
        monkeypatch,
        nvmlDeviceGetUtilizationRates=utilization,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=next(memory)),
    )
    with GpuSampler() as sampler:
        sampler.begin()
        assert enough.wait(100 * PERIOD_SECONDS)
        found = sampler.end()
    assert found == [GpuUse(name="GPU 0", utilisation=0.4, memory_bytes=5 << 30)]
    assert calls == ["init", "shutdown"]


def test_without_a_driver_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise NVMLError("driver not loaded")

    calls = nvml(monkeypatch, nvmlInit=no_driver)
    with GpuSampler() as sampler:
        sampler.begin()
        assert sampler.end() == []
    assert calls == []


def test_a_gpu_that_cannot_be_asked_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(index: int) -> int:
        raise NVMLError("GPU is lost")

    calls = nvml(monkeypatch, nvmlDeviceGetHandleByIndex=lost)
    with GpuSampler() as sampler:
        sampler.begin()
        assert sampler.end() == []
    assert calls == ["init", "shutdown"]
