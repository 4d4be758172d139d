"""What is asked of NVIDIA's driver, played by a test."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pdv_mp.memory import gpus
from pdv_mp.memory.gpus import SECONDS_VALID, Gpus


class NVMLError(Exception):
    """What the driver's module raises."""


class Driver:
    """A whole GPU, and a slice of another that does not tell its utilisation."""

    NVMLError = NVMLError

    def __init__(self, *, present: bool = True) -> None:
        self.present = present
        self.asked = 0

    def nvmlInit(self) -> None:
        if not self.present:
            raise NVMLError("driver not loaded")

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"GPU {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self.asked += 1
        return SimpleNamespace(total=80 << 30, used=handle << 30)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if handle:
            raise NVMLError("not supported")
        return SimpleNamespace(gpu=42)


def test_gpus_tell_what_they_can_and_are_not_asked_too_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, clock = Driver(), SimpleNamespace(now=100.0)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(gpus, "time", SimpleNamespace(monotonic=lambda: clock.now))
    watched = Gpus()
    first = watched.sample()
    memory = {"memory_total": 80 << 30}
    assert first == [
        {"index": 0, "name": "GPU 0", "memory_used": 0, **memory, "utilisation": 0.42},
        {"index": 1, "name": "GPU 1", "memory_used": 1 << 30, **memory},
    ]
    clock.now += SECONDS_VALID / 2
    assert watched.sample() == first
    assert driver.asked == 2
    clock.now += SECONDS_VALID
    watched.sample()
    assert driver.asked == 4


def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver(present=False))
    assert Gpus().sample() == []
