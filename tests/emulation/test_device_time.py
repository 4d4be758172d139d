"""Whose step an emulated device works on, and when it ends."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdv_mp.emulation.device_time import (
    DEVICE_FILE,
    EmulatedDevice,
    Step,
    Turns,
    bucket_of,
    missed_percentile,
)

MILLISECOND = 1_000_000

HOLD = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(600)
"""


def ends(lengths: list[int], slice_ns: int) -> list[int]:
    """When each of the steps that came one after the other at time 0 ends."""
    turns = Turns({n: Step(n, length) for n, length in enumerate(lengths)}, len(lengths), slice_ns)
    copies = [
        Turns({n: Step(n, length) for n, length in enumerate(lengths)}, len(lengths), slice_ns)
        for _ in lengths
    ]
    found = [copy.work(0, math.inf, until=n) for n, copy in enumerate(copies)]
    assert turns.work(0, math.inf) == max(found) == sum(lengths)
    return found


def test_without_slices_steps_end_in_the_order_in_which_they_came() -> None:
    assert ends([50, 10, 20], 0) == [50, 60, 80]


def test_slices_let_a_short_step_pass_a_long_one() -> None:
    assert ends([50, 10, 20], 10) == [80, 20, 50]


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=5),
    st.integers(0, 300),
    st.integers(0, 3000),
)
def test_looking_at_the_device_in_between_changes_nothing(
    lengths: list[int], slice_ns: int, looked: int
) -> None:
    wanted = ends(lengths, slice_ns)
    for process, end in enumerate(wanted):
        turns = Turns(
            {n: Step(n, length) for n, length in enumerate(lengths)}, len(lengths), slice_ns
        )
        turns.work(0, looked)
        if looked < end:
            assert turns.work(looked, math.inf, until=process) == end
        else:
            assert turns.steps[process].remaining == 0


@pytest.mark.parametrize("slice_ns", [0, MILLISECOND // 2])
def test_steps_of_one_device_never_overlap(slice_ns: int, tmp_path: Path) -> None:
    """Two ends in two threads, each with ten steps of 2 ms."""
    path, began = tmp_path / DEVICE_FILE, time.monotonic_ns()
    devices = [EmulatedDevice(path, (0, 0), process, slice_ns=slice_ns) for process in (0, 1)]

    def run(device: EmulatedDevice) -> None:
        for _ in range(10):
            device.run(0, 2 * MILLISECOND, 0)

    threads = [threading.Thread(target=run, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic_ns() - began >= 40 * MILLISECOND
    report = devices[0].report((0, 1))
    assert report["steps"] == 20
    assert report["device_ns"] == 40 * MILLISECOND
    assert sum(report["missed"].values()) == 20
    for device in devices:
        device.close()


def test_steps_of_different_devices_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Nobody could wait for the end of what one device has to do here."""
    path = tmp_path / DEVICE_FILE
    busy, idle = (EmulatedDevice(path, (0, 1), process) for process in (0, 1))
    busy._hand_over(10**15)
    idle.run(0, MILLISECOND, 0)
    busy.close()
    idle.close()


def test_steps_that_may_overlap_do_not_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / DEVICE_FILE
    busy, other = (EmulatedDevice(path, (0, 0), process, overlap=True) for process in (0, 1))
    busy._hand_over(10**15)
    other.run(0, MILLISECOND, 0)
    busy.close()
    other.close()


def test_a_step_on_a_core_of_the_host_takes_that_cores_time() -> None:
    device = EmulatedDevice(None, (0,), 0, overlap=True, host_core=True, contention=3.0)
    before = time.thread_time_ns()
    device.run(0, 20 * MILLISECOND, 0)
    took = time.thread_time_ns() - before
    assert 19 * MILLISECOND <= took < 40 * MILLISECOND
    device.close()


@pytest.mark.parametrize(("other_device", "pace"), [(0, 3.0), (1, 1.0)])
def test_steps_on_cores_of_the_host_contend_on_one_device(
    other_device: int, pace: float, tmp_path: Path
) -> None:
    path, devices = tmp_path / DEVICE_FILE, (0, other_device)
    busy, timed = (
        EmulatedDevice(path, devices, process, overlap=True, host_core=True, contention=3.0)
        for process in (0, 1)
    )
    assert timed._pace() == 1.0
    paces = []
    for _ in range(100):  # this thread may lose its core between the two, for long
        busy._pace()
        paces.append(timed._pace())
    assert max(paces) == pace
    busy._pace()
    time.sleep(0.001)
    assert timed._pace() == 1.0  # whoever does not say so any more has died, or has no core
    busy._pace()
    busy.run(0, 1000, 0)
    assert timed._pace() == 1.0
    busy.close()
    timed.close()


def test_a_dead_process_holds_nobody_up(tmp_path: Path) -> None:
    """It had the lock when it was killed, and a step on the device."""
    path = tmp_path / DEVICE_FILE
    dead, alive = (EmulatedDevice(path, (0, 0), process) for process in (0, 1))
    dead._hand_over(5 * MILLISECOND)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"locked\n"
        thread = threading.Thread(target=alive.run, args=(0, MILLISECOND, 0))
        thread.start()
        os.kill(child.pid, signal.SIGKILL)
        thread.join(60)
        assert not thread.is_alive()
    dead.close()
    alive.close()


def test_percentiles_of_missed_moments() -> None:
    missed = {str(bucket_of(500)): 98, str(bucket_of(40_000)): 2}
    assert missed_percentile(missed, 50) == pytest.approx(0.5, rel=0.2)
    assert missed_percentile(missed, 99) == pytest.approx(40, rel=0.2)
    assert missed_percentile({}, 50) is None
