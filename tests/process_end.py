"""Waits for the end of a process that is somebody else's child."""

from __future__ import annotations

import os
import select


def wait_ended(pid: int, seconds: float = 30.0) -> None:
    """Returns when all threads of a process have ended, so that its parent can reap it.

    That it is shown as a zombie says only that its first thread has ended.
    """
    descriptor = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if not poller.poll(seconds * 1000):
            raise TimeoutError(f"process {pid} has not ended within {seconds:g} s")
    finally:
        os.close(descriptor)
