"""How a worker or a lane waits for the next message: ``--wait``."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Set
from contextlib import suppress
from typing import Any

import zmq

from pdv_mp.config import HandoffOptions

Ready = Set[Any]
"""Sockets that have a message, and file descriptors that can be read. To ask one that has none
raises an exception, by code that has left the caches: after a sleep that costs tens of µs."""

HYBRID_NS = 1_000_000
"""How long ``hybrid`` polls before it blocks."""

_CLOCK_MONOTONIC = 1
_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_SECOND = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Timer:
    """A timerfd: readable from a moment on, to the nanosecond, where a poll knows milliseconds."""

    def __init__(self) -> None:
        self.fd = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
        if self.fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"timerfd_create: {os.strerror(number)}")

    def set(self, nanoseconds: int) -> None:
        """Become readable that long from now; at least a nanosecond."""
        seconds, rest = divmod(max(1, nanoseconds), _SECOND)
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(seconds, rest))
        if _libc.timerfd_settime(self.fd, 0, ctypes.byref(spec), None) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"timerfd_settime: {os.strerror(number)}")

    def clear(self) -> None:
        """Be readable no longer; what was set and has not come stays set."""
        with suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class Waiting:
    """Waits on several sockets at once.

    ``block`` sleeps in the kernel until one has a message. ``spin`` asks them again and again,
    sleeping ``--wait-interval-us`` in between: it is never asleep for longer, and never idle.
    ``hybrid`` does so for :data:`HYBRID_NS` and then blocks.
    """

    def __init__(self, options: HandoffOptions) -> None:
        self._mode = options.wait
        self._interval = options.wait_interval_us / 1e6
        self._poller = zmq.Poller()
        self._timer: Timer | None = None

    def register(self, socket: zmq.Socket[bytes] | int) -> None:
        """Wait for this socket, or file descriptor, too."""
        self._poller.register(socket, zmq.POLLIN)

    def unregister(self, socket: zmq.Socket[bytes]) -> None:
        """Wait for it no longer."""
        self._poller.unregister(socket)

    def ready(self) -> Ready:
        """Those that have a message now."""
        return self._poll(0)

    def wait(self, until_ns: int | None = None) -> Ready:
        """Wait until a socket has a message, or until ``until_ns`` (monotonic), and return those
        that have one."""
        now = time.monotonic_ns()
        if until_ns is not None and until_ns <= now:
            return self._poll(0)
        if self._mode != "block":
            end = now + HYBRID_NS if self._mode == "hybrid" else None
            found = self._spin(until_ns, end)
            if found is not None:
                return found
        if until_ns is not None:
            self._timer_at(until_ns)
        return self._poll(None)

    def _spin(self, until_ns: int | None, end_ns: int | None) -> Ready | None:
        """Ask until there is a message or ``until_ns`` is over; None at ``end_ns``."""
        while not (found := self._poll(0)):
            now = time.monotonic_ns()
            if until_ns is not None and now >= until_ns:
                break
            if end_ns is not None and now >= end_ns:
                return None
            if self._interval:
                time.sleep(self._interval)
        return found

    def _poll(self, timeout_ms: int | None) -> Ready:
        found = {socket for socket, _ in self._poller.poll(timeout_ms)}
        if self._timer is not None and self._timer.fd in found:
            self._timer.clear()
            found.remove(self._timer.fd)
        return found

    def _timer_at(self, until_ns: int) -> None:
        if self._timer is None:
            self._timer = Timer()
            self._poller.register(self._timer.fd, zmq.POLLIN)
        self._timer.set(until_ns - time.monotonic_ns())

    def close(self) -> None:
        """Give the timer back; the sockets belong to their edges."""
        if self._timer is not None:
            self._timer.close()
