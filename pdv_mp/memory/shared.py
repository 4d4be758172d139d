"""Anonymous memory that can be mapped by several processes and is committed page by page."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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

    def __init__(self, fd: int, nbytes: int, writable: bool = True) -> None:
        """Take over `fd`, a descriptor of at least `nbytes` bytes, and map it.

        Not ``writable``: all pages are mapped at once, and writing to one kills the process with
        SIGSEGV. Such a mapping shares its pages as any other does; it is a private one because only
        that kind may be made of sealed contents by kernels older than 6.7.
        """
        self.nbytes = nbytes
        self.writable = writable
        self._fd = fd
        if writable:
            self._mapping: mmap.mmap | None = mmap.mmap(fd, nbytes)
        else:
            flags = mmap.MAP_PRIVATE | mmap.MAP_POPULATE
            self._mapping = mmap.mmap(fd, nbytes, flags, mmap.PROT_READ)

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

    @classmethod
    def open(cls, pid: int, fd: int, inode: int, nbytes: int, writable: bool) -> SharedBuffer:
        """Map the buffer that the process `pid` has as descriptor `fd`.

        Raises OSError when the process is gone or not to be seen, and ValueError when the
        descriptor is not the file with that inode, of exactly `nbytes` bytes.
        """
        mode = os.O_RDWR if writable else os.O_RDONLY
        opened = os.open(f"/proc/{pid}/fd/{fd}", mode | os.O_CLOEXEC)
        try:
            status = os.fstat(opened)
            if (status.st_ino, status.st_size) != (inode, nbytes):
                raise ValueError(
                    f"descriptor {fd} of process {pid} is inode {status.st_ino} of "
                    f"{status.st_size} bytes, not {inode} of {nbytes}"
                )
            return cls(opened, nbytes, writable)
        except (OSError, ValueError):
            os.close(opened)
            raise

    def sealed(self) -> SharedBuffer:
        """Close this buffer and return one of the same memory that nobody can write any more.

        Raises OSError (EBUSY) while a tensor over the buffer is alive, here or elsewhere.
        """
        fd = os.dup(self.fd)
        self.close()
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
            return SharedBuffer(fd, self.nbytes, writable=False)
        except OSError:
            os.close(fd)
            raise

    @property
    def inode(self) -> int:
        """The number that tells this memory from any other of the machine."""
        return os.fstat(self.fd).st_ino

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
        if not self.writable:
            return read_only_tensor(self._mapping)
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


def read_only_tensor(memory: mmap.mmap | npt.NDArray[np.uint8]) -> torch.Tensor:
    """Memory that cannot be written as uint8 [nbytes]; the tensor keeps it alive."""
    import torch

    return torch.from_numpy(np.asarray(_ReadOnlyBytes(memory)))


class _ReadOnlyBytes:
    """Hands memory to numpy as if it could be written, because torch has no read-only tensors
    and warns of memory that says what it is. The array keeps this object and so the memory."""

    def __init__(self, memory: mmap.mmap | npt.NDArray[np.uint8]) -> None:
        self._memory = memory
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "|u1",
            "shape": (len(memory),),
            "data": (np.frombuffer(memory, np.uint8).ctypes.data, False),
        }
