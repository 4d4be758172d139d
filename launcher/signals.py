"""Signals as something a loop can poll: handlers only leave a note, the loop decides."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any


class SignalFlags:
    """A context in which the given signals are counted and wake a poller; for the main thread.

    ``fd`` becomes readable when one arrives. The old handlers come back at the end.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = tuple(numbers)
        self._arrived: list[signal.Signals] = []
        self._previous: dict[signal.Signals, Any] = {}
        self._previous_wakeup = -1
        self.fd = -1
        self._write_fd = -1

    def __enter__(self) -> SignalFlags:
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._previous_wakeup = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in self._numbers:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: the server is to outlive its terminal
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self.fd)
        os.close(self._write_fd)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append(signal.Signals(number))

    def take(self) -> list[signal.Signals]:
        """The signals that arrived since the last call, oldest first."""
        try:
            while os.read(self.fd, 4096):
                pass
        except BlockingIOError:
            pass
        arrived, self._arrived = self._arrived, []
        return arrived
