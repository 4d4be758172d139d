"""Both ends of a KV handoff between workers that have caches of their own.

The sender takes a finished prompt's rows out of its cache, as bytes (``copy``) or into a buffer of
their own whose handle it passes on (``handle``); the receiver writes them into its cache. A buffer
belongs to the sender until the receiver has it released; it goes with the sender's process in any
case, and never stays when both have ended.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path

import numpy as np
import torch

from pdv_mp.config import ConfigError
from pdv_mp.memory.contiguous_kv_cache import ContiguousKVCache
from pdv_mp.memory.cuda_ipc import CudaBuffer, CudaRuntime
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.memory.shared import SharedBuffer, read_only_tensor
from pdv_mp.resources.resource_plan import DRAFT, POOL, ResourcePlan
from pdv_mp.stages.kv_rows import KVBuffer, KVRows
from pdv_mp.wire.frames import WireError


class KVSender(ABC):
    """Hands on the rows of finished prompts, and frees their slots here.

    ``num_blocks``: of a cache; what idle slots keep beyond that is given back to the system.
    """

    def __init__(self, caches: Mapping[str, KVCache], num_blocks: int) -> None:
        self._caches = dict(caches)
        self._num_blocks = num_blocks
        self._buffers: dict[int, tuple[int, SharedBuffer | CudaBuffer]] = {}

    def pack(self, slot: int, tokens: int, with_draft: bool) -> list[KVRows]:
        """The rows of a slot's first ``tokens``: the verifier's, and the draft's as well if
        ``with_draft``."""
        rows = []
        for role, cache in self._caches.items():
            if role != DRAFT or with_draft:
                rows.append(self._pack(role, cache, slot, tokens))
            give_back_pages(cache, slot, self._num_blocks)
        return rows

    @property
    def num_buffers(self) -> int:
        """Buffers that have not been released."""
        return len(self._buffers)

    @abstractmethod
    def _pack(self, role: str, cache: KVCache, slot: int, tokens: int) -> KVRows:
        """The rows of one model."""

    def release(self, numbers: Iterable[int]) -> None:
        """Free buffers that have been read, or are no longer wanted."""
        for number in numbers:
            _, buffer = self._buffers.pop(number, (-1, None))
            if buffer is not None:
                buffer.close()

    def withdraw(self, slots: Iterable[int]) -> None:
        """Free the buffers of slots whose sequences have ended."""
        ended = set(slots)
        self.release([number for number, (slot, _) in self._buffers.items() if slot in ended])

    def close(self) -> None:
        """Free all buffers."""
        self.release(list(self._buffers))


class CopySender(KVSender):
    """Rows as bytes of the message."""

    def _pack(self, role: str, cache: KVCache, slot: int, tokens: int) -> KVRows:
        shape = cache.rows_shape(tokens)
        rows = torch.empty(shape, dtype=cache.dtype, device=cache.device)
        content = cache.export_rows(slot, 0, rows).cpu().flatten().view(torch.uint8).numpy()
        return KVRows(slot, role, tokens, content)


class HandleSender(KVSender):
    """Rows in a buffer for each request and model: a memfd on the CPU, CUDA IPC on a GPU."""

    def __init__(self, caches: Mapping[str, KVCache], num_blocks: int) -> None:
        super().__init__(caches, num_blocks)
        self._numbers = count(1)
        self._runtime = _runtime_of(caches)

    def _pack(self, role: str, cache: KVCache, slot: int, tokens: int) -> KVRows:
        nbytes = cache.rows_bytes(tokens)
        buffer: SharedBuffer | CudaBuffer
        if self._runtime is None:
            buffer = SharedBuffer.create(nbytes, f"pdv_mp-handoff-{role}")
        else:
            buffer = CudaBuffer.create(self._runtime, nbytes, 0, cache.device)
        number = next(self._numbers)
        self._buffers[number] = (slot, buffer)
        rows = buffer.tensor().view(cache.dtype).view(cache.rows_shape(tokens))
        cache.export_rows(slot, 0, rows)
        pid = os.getpid()
        if isinstance(buffer, SharedBuffer):
            place = KVBuffer(number, pid, buffer.fd, buffer.inode, nbytes)
        else:
            torch.cuda.synchronize(cache.device)
            place = KVBuffer(number, pid, -1, 0, nbytes, buffer.handle())
        return KVRows(slot, role, tokens, place)


def make_sender(
    plan: ResourcePlan, caches: Mapping[str, KVCache], num_blocks: int
) -> KVSender | None:
    """What ``--kv-handoff`` asks for; None where nothing has to move."""
    if plan.kv_handoff == POOL:
        return None
    kind = CopySender if plan.kv_handoff == "copy" else HandleSender
    return kind(caches, num_blocks)


class KVReceiver:
    """Writes rows that were handed on into caches of this process, by role.

    ``num_blocks`` as in :class:`KVSender`; None where another account gives pages back.
    """

    def __init__(self, caches: Mapping[str, KVCache], num_blocks: int | None = None) -> None:
        self._caches = dict(caches)
        self._num_blocks = num_blocks
        self._runtime: CudaRuntime | None = None

    @property
    def roles(self) -> frozenset[str]:
        """The models whose rows this process takes."""
        return frozenset(self._caches)

    def take(self, rows: KVRows) -> bool:
        """Write rows to their slot; False, and nothing done, if the process that had them is gone.

        Raises WireError for rows of another size, ConfigError when this system does not let
        processes share memory.
        """
        cache = self._caches.get(rows.role)
        if cache is None:
            raise WireError(f"there is no cache here for KV of the model {rows.role!r}")
        if rows.nbytes != cache.rows_bytes(rows.tokens):
            raise WireError(
                f"{rows.tokens} tokens of the {rows.role} model come with {rows.nbytes} bytes of "
                f"KV, not {cache.rows_bytes(rows.tokens)}"
            )
        if self._num_blocks is not None:
            give_back_pages(cache, rows.slot, self._num_blocks)
        if not isinstance(rows.content, KVBuffer):
            _write(cache, rows, read_only_tensor(rows.content))
            return True
        buffer = self._open(rows.content, cache)
        if buffer is None:
            return False
        try:
            _write(cache, rows, buffer.tensor())
            if cache.device.type == "cuda":
                torch.cuda.synchronize(cache.device)
        finally:
            buffer.close()
        return True

    def _open(self, place: KVBuffer, cache: KVCache) -> SharedBuffer | CudaBuffer | None:
        try:
            if not place.ipc:
                return SharedBuffer.open(
                    place.pid, place.fd, place.inode, place.nbytes, writable=False
                )
            if self._runtime is None:
                self._runtime = CudaRuntime()
            return CudaBuffer.open(self._runtime, place.ipc, place.nbytes, 0, cache.device)
        except (FileNotFoundError, ProcessLookupError, ValueError) as error:
            if isinstance(error, ConfigError) and not _has_ended(place.pid):
                raise
            return None
        except OSError as error:
            if _has_ended(place.pid):
                return None
            raise ConfigError(
                f"KV of process {place.pid} cannot be mapped ({error}): processes of one server "
                "need one user and one PID namespace; else use --kv-handoff copy"
            ) from error


def give_back_pages(cache: KVCache, slot: int, num_blocks: int) -> None:
    """Give the pages of an idle slot back if a contiguous cache has more than its blocks take."""
    if not isinstance(cache, ContiguousKVCache):
        return
    if cache.committed_bytes() > cache.rows_bytes(num_blocks * cache.block_size):
        cache.discard(slot)


def _write(cache: KVCache, rows: KVRows, content: torch.Tensor) -> None:
    typed = content.view(cache.dtype).view(cache.rows_shape(rows.tokens))
    cache.import_rows(rows.slot, 0, typed)


def _runtime_of(caches: Mapping[str, KVCache]) -> CudaRuntime | None:
    on_gpu = any(cache.device.type == "cuda" for cache in caches.values())
    return CudaRuntime() if on_gpu else None


def _has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"


def numbers_of(rows: Iterable[KVRows]) -> np.ndarray:
    """The numbers of the buffers that these rows lie in, int64."""
    return np.array([part.number for part in rows if part.number is not None], np.int64)
