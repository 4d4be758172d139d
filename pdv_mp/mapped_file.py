"""Files of the run directory that a process writes by storing to memory."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk is full, or a quota or a limit on files is reached."""


def create_mapped(path: Path, size: int) -> mmap.mmap:
    """A new file of ``size`` bytes, zeros at first, mapped for writing.

    Raises OSError, with the file's name, if it cannot be made or its disk is full: that is found
    here, since later a store to it would end the process.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, size)
        return mmap.mmap(file, size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(file)


def full_disk(error: OSError) -> str | None:
    """One sentence about a file of the run directory that can have no more room; None if that is
    not what the error says."""
    if error.errno not in NO_ROOM or error.filename is None:
        return None
    reason = (error.strerror or str(error)).lower()
    return (
        f"{error.filename} cannot be written: {reason}; make room, or set XDG_RUNTIME_DIR to a "
        "folder that has some"
    )
