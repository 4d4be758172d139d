"""Keys and values on their way from one worker's cache to another's, where each has its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class KVBuffer:
    """Memory of the process ``pid`` with rows in it, which others may open until it is released.

    ``number``: by which its owner knows it. It is the descriptor ``fd``, a file with that inode
    and size, or on a GPU what the CUDA IPC handle ``ipc`` names.
    """

    number: int
    pid: int
    fd: int
    inode: int
    nbytes: int
    ipc: bytes = b""


@dataclass(frozen=True, slots=True)
class KVRows:
    """The rows of the first ``tokens`` of ``slot`` in the cache of the model with that role.

    ``content``: the rows themselves, uint8 [nbytes], or where they lie; the form is that of
    :meth:`pdv_mp.memory.kv_cache.KVCache.export_rows`.
    """

    slot: int
    role: str
    tokens: int
    content: npt.NDArray[np.uint8] | KVBuffer

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return int(self.content.nbytes)

    @property
    def number(self) -> int | None:
        """The number of the buffer that is to be released, if there is one."""
        return self.content.number if isinstance(self.content, KVBuffer) else None
