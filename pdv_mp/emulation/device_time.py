"""The time of emulated devices, shared by the processes that compute on them.

A device works on one step at a time. A step that is handed to it while it works waits; with a time
slice the device goes round among those that wait, as a GPU does among processes. Nobody holds a
lock meanwhile: who hands a step over reads from the shared account when it will end, sleeps until
then, and looks again, since what others hand over in between may put the end off. The account is
brought up to date by whoever touches it, under a file lock for some microseconds, which the kernel
frees when its holder dies. The step that a dead process left ends in its time.

Layout, int64 in native order: for each device the time up to which its account is made, the next
ticket, and a count of arrivals; then for each process its step (ticket, remaining ns, ns of its
present slice), until when it computes at least, the count and the device time of its steps, and by
how much its waits missed.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdv_mp.emulation.core_time import CoreTime
from pdv_mp.emulation.device_name import MAX_DEVICES
from pdv_mp.emulation.precise_wait import PreciseWait

DEVICE_FILE = "emulated-devices"
"""File name of the account in the run directory."""

BUCKETS_PER_OCTAVE = 4
NUM_BUCKETS = 144

_MADE_TO, _NEXT_TICKET, _ARRIVALS, _DEVICE_WORDS = range(4)
_TICKET, _REMAINING, _USED, _COMPUTES_UNTIL, _STEPS, _BUSY, _MISSED = range(7)
_PROCESS_WORDS = _MISSED + NUM_BUCKETS

_SEEN_COMPUTING_NS = 500_000
"""For so long a process counts as computing after it last said so: one that lost its core, or died,
stands in nobody's way."""


@dataclass(slots=True)
class Step:
    """What a device still has to do of a step, ns; steps with a lower ``ticket`` go first."""

    ticket: int
    remaining: int
    used: int = 0


@dataclass(slots=True)
class Turns:
    """The steps that a device has, by process, and the rule by which it works on them."""

    steps: dict[int, Step]
    next_ticket: int
    slice_ns: int

    def work(self, start_ns: int, end_ns: float, until: int | None = None) -> int:
        """Go on from ``start_ns`` to ``end_ns``, or to the end of the step of process ``until``;
        the time that it is then. What has ended has nothing remaining."""
        now = start_ns
        while now < end_ns:
            waiting = [step for step in self.steps.values() if step.remaining > 0]
            if not waiting or (until is not None and self.steps[until].remaining <= 0):
                break
            step = min(waiting, key=lambda step: step.ticket)
            sliced = self.slice_ns > 0 and len(waiting) > 1
            part = step.remaining
            if sliced:
                part = min(part, max(0, self.slice_ns - step.used))
            if now + part > end_ns:
                part = int(end_ns) - now
            step.remaining -= part
            step.used += part
            now += part
            if sliced and step.remaining > 0 and step.used >= self.slice_ns:
                step.ticket, step.used = self.next_ticket, 0
                self.next_ticket += 1
        return now


class EmulatedDevice:
    """The end of one process. ``devices``: on which device each process computes, by its place in
    the account; ``process``: this one's. Without a ``path`` no other process takes part.

    ``slice_ns``: 0 lets each step end. With ``overlap`` steps do not wait for each other. With
    ``host_core`` they take the time of a core of this host, ``contention`` times as much while
    another process computes on the same device.
    """

    def __init__(
        self,
        path: Path | None,
        devices: tuple[int, ...],
        process: int,
        *,
        slice_ns: int = 0,
        overlap: bool = False,
        host_core: bool = False,
        contention: float = 1.0,
    ) -> None:
        self._process = process
        self._slice_ns = slice_ns
        self._overlap = overlap
        words = MAX_DEVICES * _DEVICE_WORDS + len(devices) * _PROCESS_WORDS
        self._fd = -1
        if path is None:
            memory = mmap.mmap(-1, 8 * words)
        else:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(self._fd, 0, 8 * words)
            memory = mmap.mmap(self._fd, 8 * words)
        self._map = memory
        self._words = memoryview(memory).cast("q")
        self._device = devices[process] * _DEVICE_WORDS
        self._sharing = [
            number for number, device in enumerate(devices) if device == devices[process]
        ]
        self._others = [number for number in self._sharing if number != process]
        self._contention = contention
        self._core = CoreTime() if host_core else None
        self._wait = PreciseWait()

    def run(self, launch_ns: int, device_ns: int, synchronize_ns: int) -> None:
        """Return when a step that is begun now is done and known to be."""
        entered = time.monotonic_ns()
        if launch_ns:
            self._wait.until(entered + launch_ns)
        if self._core is not None:
            missed = self._core.spend(device_ns + synchronize_ns, self._pace)
            self._words[self._place(self._process) + _COMPUTES_UNTIL] = 0
        elif self._overlap:
            missed = self._wait.until(entered + launch_ns + device_ns + synchronize_ns)
        else:
            missed = self._wait_for_turn(device_ns, synchronize_ns)
        place = self._place(self._process)
        self._words[place + _STEPS] += 1
        self._words[place + _BUSY] += device_ns
        self._words[place + _MISSED + bucket_of(missed)] += 1

    def _pace(self) -> float:
        """How many times as long as alone this process computes now; others see that it does."""
        now = time.monotonic_ns()
        self._words[self._place(self._process) + _COMPUTES_UNTIL] = now + _SEEN_COMPUTING_NS
        for other in self._others:
            if self._words[self._place(other) + _COMPUTES_UNTIL] > now:
                return self._contention
        return 1.0

    def _wait_for_turn(self, device_ns: int, synchronize_ns: int) -> int:
        end, arrivals = self._hand_over(device_ns)
        while True:
            missed = self._wait.until(end + synchronize_ns)
            if self._words[self._device + _ARRIVALS] == arrivals:
                return missed
            with self._locked():
                now = time.monotonic_ns()
                turns = self._brought_up_to(now)
                arrivals = self._words[self._device + _ARRIVALS]
                if turns.steps[self._process].remaining <= 0:
                    return missed
                end = turns.work(now, math.inf, until=self._process)

    def _hand_over(self, device_ns: int) -> tuple[int, int]:
        """Put this process's step into the account: when it will end if nobody else comes, and how
        many have come by now."""
        with self._locked():
            now = time.monotonic_ns()
            turns = self._brought_up_to(now)
            place, device = self._place(self._process), self._device
            turns.steps[self._process] = Step(turns.next_ticket, device_ns)
            turns.next_ticket += 1
            self._words[place + _TICKET] = turns.steps[self._process].ticket
            self._words[place + _USED] = 0
            self._words[place + _REMAINING] = device_ns
            self._words[device + _NEXT_TICKET] = turns.next_ticket
            self._words[device + _ARRIVALS] += 1
            arrivals = self._words[device + _ARRIVALS]
            return turns.work(now, math.inf, until=self._process), arrivals

    def _brought_up_to(self, now: int) -> Turns:
        """The device's steps as they are now, which is written back. Call it with the lock held."""
        words, device = self._words, self._device
        steps = {}
        for process in self._sharing:
            place = self._place(process)
            remaining = words[place + _REMAINING]
            if remaining > 0 or process == self._process:
                steps[process] = Step(words[place + _TICKET], remaining, words[place + _USED])
        turns = Turns(steps, words[device + _NEXT_TICKET], self._slice_ns)
        turns.work(words[device + _MADE_TO], now)
        for process, step in steps.items():
            place = self._place(process)
            words[place + _TICKET] = step.ticket
            words[place + _REMAINING] = step.remaining
            words[place + _USED] = step.used
        words[device + _NEXT_TICKET] = turns.next_ticket
        words[device + _MADE_TO] = now
        return turns

    @staticmethod
    def _place(process: int) -> int:
        return MAX_DEVICES * _DEVICE_WORDS + process * _PROCESS_WORDS

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._fd < 0:
            yield
            return
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def report(self, processes: Iterable[int]) -> dict[str, Any]:
        """What these processes have done: ``steps``, ``device_ns``, and ``missed``, waits by the
        bucket of the ns by which they missed their moment (as :func:`missed_percentile` reads)."""
        missed: dict[str, int] = {}
        steps = device_ns = 0
        for process in processes:
            place = self._place(process)
            steps += self._words[place + _STEPS]
            device_ns += self._words[place + _BUSY]
            for bucket in range(NUM_BUCKETS):
                count = self._words[place + _MISSED + bucket]
                if count:
                    missed[str(bucket)] = missed.get(str(bucket), 0) + count
        return {"steps": steps, "device_ns": device_ns, "missed": missed}

    def close(self) -> None:
        """Unmap the account; the file stays for the others."""
        self._words.release()
        self._map.close()
        if self._fd >= 0:
            os.close(self._fd)


def bucket_of(nanoseconds: int) -> int:
    """Where a wait that missed its moment by so much is counted."""
    return min(NUM_BUCKETS - 1, int(BUCKETS_PER_OCTAVE * math.log2(1 + max(0, nanoseconds))))


def missed_percentile(missed: Mapping[str, int], percent: float) -> float | None:
    """Microseconds by which at most so many percent of the waits missed; None without waits."""
    counts = sorted((int(bucket), count) for bucket, count in missed.items() if count > 0)
    wanted = sum(count for _, count in counts) * percent / 100
    seen = 0
    for bucket, count in counts:
        seen += count
        if seen >= wanted:
            return float((2 ** ((bucket + 0.5) / BUCKETS_PER_OCTAVE) - 1) / 1000)
    return None
