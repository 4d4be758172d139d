"""The private directory of one running server: its sockets, its configuration, and a lock.

Whoever holds the lock is alive. A launcher that was killed leaves its directory behind; the next
one on the machine finds the lock free and removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from pdv_mp.config import ConfigError
from pdv_mp.topology_rows import MAX_REPLICAS, MAX_WORKER_NAME

PREFIX = "pdv-"
LOCK_FILE = "lock"
MAX_SOCKET_PATH = 107
"""Bytes that the kernel allows for the path of a socket."""

_LONGEST_NAME = f"/{'w' * MAX_WORKER_NAME}-{MAX_REPLICAS - 1}.4294967295"


class RunDirectory:
    """A fresh directory of mode 0700, locked until :meth:`remove` or the end of this process.

    Raises ConfigError if there is no place where sockets can live.
    """

    def __init__(self, base: Path | None = None) -> None:
        base = run_base() if base is None else base
        longest = len(os.fsencode(base)) + len(f"/{PREFIX}12345678{_LONGEST_NAME}")
        if longest > MAX_SOCKET_PATH:
            raise ConfigError(
                f"the folder for sockets, {base}, has too long a name (the kernel allows "
                f"{MAX_SOCKET_PATH} bytes for a socket's path); set XDG_RUNTIME_DIR to a shorter "
                "one"
            )
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        except OSError as error:
            raise _unusable(f"cannot create a folder for sockets in {base}", error) from error
        self._lock = -1
        try:
            self._make_lock()
        except OSError as error:
            self.remove()
            raise _unusable(f"cannot write to the folder for sockets in {base}", error) from error

    def _make_lock(self) -> None:
        """The lock is held before the file gets its name, so that nobody can find it free."""
        fresh = self.path / f"{LOCK_FILE}.new"
        self._lock = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.write(self._lock, f"{os.getpid()}\n".encode())
        fresh.rename(self.path / LOCK_FILE)

    def write(self, name: str, text: str) -> None:
        """Writes a file in the directory. Raises ConfigError if it can have no room there."""
        try:
            (self.path / name).write_text(text, encoding="utf-8")
        except OSError as error:
            what = f"cannot write to the folder for sockets in {self.path.parent}"
            raise _unusable(what, error) from error

    def remove(self) -> None:
        """Removes the directory and everything in it, then gives up the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _unusable(what: str, error: OSError) -> ConfigError:
    reason = (error.strerror or str(error)).lower()
    return ConfigError(f"{what}: {reason}; set XDG_RUNTIME_DIR to another one")


def run_base() -> Path:
    """Where run directories live: ``$XDG_RUNTIME_DIR`` if it can be used, else ``$TMPDIR``."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime) and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime)
    return Path(tempfile.gettempdir())


def sweep_stale(base: Path | None = None) -> list[Path]:
    """Removes this user's run directories whose launcher is dead; returns their paths."""
    removed = []
    for lock_path in sorted((run_base() if base is None else base).glob(f"{PREFIX}*/{LOCK_FILE}")):
        try:
            if lock_path.parent.lstat().st_uid != os.getuid():
                continue
            lock = os.open(lock_path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # another launcher has just removed it, or it is not ours to open
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its launcher lives
        else:
            shutil.rmtree(lock_path.parent, ignore_errors=True)
            removed.append(lock_path.parent)
        finally:
            os.close(lock)
    return removed
