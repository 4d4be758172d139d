"""Imports that an interrupt ends at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_end(line: str, status: int) -> Iterator[None]:
    """Meanwhile an interrupt writes ``line`` to stderr, if it is not empty, and ends the process.

    Within an import KeyboardInterrupt cannot be relied on: a package may take it for a failed
    import and raise another exception, or none. Nothing has begun that would have to be ended.
    Interrupts that are ignored stay so.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, line.encode())
        os._exit(status)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
