"""``--exclusive-device``: one step at a time on a CPU device, as a GPU slices its time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from pdv_mp.config import EngineConfig

LOCK_FILE = "device.lock"
"""File name of the lock in the run directory."""


class DeviceLock:
    """A lock between processes; the kernel frees it when its holder dies."""

    exclusive = True

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, which frees the lock."""
        os.close(self._fd)


class NoLock:
    """The same for processes that may compute at once."""

    exclusive = False

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        return

    def close(self) -> None:
        """Nothing is open."""


Lock = DeviceLock | NoLock


def device_lock(config: EngineConfig, run_dir: Path) -> Lock:
    """The lock that a configuration asks for."""
    return DeviceLock(run_dir / LOCK_FILE) if config.handoff.exclusive_device else NoLock()
