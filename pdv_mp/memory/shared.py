"""Anonymous memory that can be mapped by several processes and is committed page by page."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int


class SharedBuffer:
    """A memfd of fixed size, mapped into this process; nothing is left when its users are gone.

    Pages are committed when first touched, by a read as well, so a buffer may be larger than what
    will be used of it.
    Seals refuse any change of size, so a mapping can never raise SIGBUS.
    """

    def __init__(self, fd: int, nbytes: int) -> None:
        """Take over `fd`, a descriptor of at least `nbytes` bytes, and map it."""
        self.nbytes = nbytes
        self._fd = fd
        self._mapping: mmap.mmap | None = mmap.mmap(fd, nbytes)

    @classmethod
    def create(cls, nbytes: int, name: str) -> SharedBuffer:
        """A new zeroed buffer; `name` only shows in /proc. Raises ValueError, OSError."""
        if nbytes <= 0:
            raise ValueError(f"a shared buffer needs at least one byte, not {nbytes}")
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, nbytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            return cls(fd, nbytes)
        except (OSError, ValueError):
            os.close(fd)
            raise

    @property
    def fd(self) -> int:
        """The descriptor to hand to another process; ValueError when closed."""
        if self._fd < 0:
            raise ValueError("the shared buffer is closed")
        return self._fd

    def tensor(self) -> torch.Tensor:
        """The whole buffer as uint8 [nbytes]; it keeps the mapping alive, also after `close`."""
        import torch

        if self._mapping is None:
            raise ValueError("the shared buffer is closed")
        return torch.frombuffer(self._mapping, dtype=torch.uint8)

    def discard(self, offset: int, nbytes: int) -> None:
        """Give the pages of a range back to the system; the range reads as zeros afterwards.

        Both ends must lie on page boundaries, otherwise neighbours would be zeroed as well.
        """
        if offset % mmap.PAGESIZE or nbytes % mmap.PAGESIZE:
            raise ValueError(f"range {offset}+{nbytes} is not aligned to {mmap.PAGESIZE} bytes")
        if offset < 0 or nbytes <= 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"range {offset}+{nbytes} lies outside of {self.nbytes} bytes")
        mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
        if _libc.fallocate(self.fd, mode, offset, nbytes) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"fallocate: {os.strerror(error)}")

    def committed_bytes(self) -> int:
        """Memory that the buffer really occupies, in bytes: exact, in constant time."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        """Close the descriptor; the memory goes when the last tensor over it is gone."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._mapping = None
