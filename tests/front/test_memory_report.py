"""``info.memory``: what the kernel says of each process, and how often it is asked."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from pdv_mp.front import memory
from pdv_mp.front.memory import SECONDS_VALID, MemoryAccount


class Clock:
    """Time that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: self.now))


def test_each_process_is_counted_and_those_that_are_gone_are_missing() -> None:
    found = MemoryAccount(on_gpu=False).of({"front": os.getpid(), "gone": 1 << 30})
    assert set(found) == {"front"}
    fields = found["front"]
    assert set(fields) == {"rss", "pss", "private"}
    assert fields["rss"] >= fields["pss"] >= fields["private"] > 1 << 20


def test_the_kernel_is_not_asked_more_often_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    asked: list[int] = []
    real = memory.process_memory
    monkeypatch.setattr(memory, "process_memory", lambda pid: (asked.append(pid), real(pid))[1])
    account, pid = MemoryAccount(on_gpu=False), os.getpid()
    first = account.of({"front": pid})
    clock.now += SECONDS_VALID / 2
    assert account.of({"front": pid}) == first
    assert asked == [pid]
    account.of({"front": pid, "worker-0": pid})
    assert asked == [pid] * 3, "another set of processes"
    clock.now += SECONDS_VALID
    account.of({"front": pid, "worker-0": pid})
    assert asked == [pid] * 5, "too old"


def test_memory_of_the_gpu_is_told_where_the_driver_knows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pid = os.getpid()
    monkeypatch.setattr(memory, "gpu_memory", lambda pids: dict.fromkeys(pids - {1 << 30}, 7))
    found = MemoryAccount(on_gpu=True).of({"front": pid, "gone": 1 << 30})
    assert found["front"]["vram"] == 7
