"""Memory of a GPU that several processes use, by the raw handles of CUDA's runtime.

The owner allocates with cudaMalloc, apart from torch's allocator, and publishes 64 bytes for each
allocation; others open them. Nothing is pickled, and a handle names a whole allocation: sizes are
rounded up to what CUDA never shares between two. Behind its contents each allocation has a few
words (int64) with which both sides can see that they share it.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch

from pdv_mp.config import ConfigError
from pdv_mp.memory.device_array import DeviceArray

HANDLE_BYTES = 64
_GRANULE = 2 << 20  # smaller allocations may lie in one that others share
_ALIGNMENT = 256
_LAZY_PEER_ACCESS = 1
_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


class _Handle(ctypes.Structure):
    """cudaIpcMemHandle_t, which is passed by value."""

    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_BYTES),)


class CudaError(RuntimeError):
    """A call of CUDA's runtime failed."""


class CudaRuntime:
    """The few calls of libcudart that memory between processes takes.

    The constructor raises ConfigError when the library is not there.
    """

    def __init__(self) -> None:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        version = torch.version.cuda
        if version is None:
            raise ConfigError("this build of torch has no CUDA runtime; use --device cpu")
        major = version.partition(".")[0]
        name = f"libcudart.so.{'11.0' if major == '11' else major}"
        try:
            self._library = ctypes.CDLL(name)  # torch has loaded it; its name finds the same one
        except OSError as error:
            raise ConfigError(
                f"memory of a GPU cannot be shared between processes without {name} ({error}); use "
                "--topology unified"
            ) from error
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        signatures: dict[str, tuple[Any, ...]] = {
            "cudaMalloc": (ctypes.POINTER(pointer), size),
            "cudaFree": (pointer,),
            "cudaMemset": (pointer, ctypes.c_int, size),
            "cudaIpcGetMemHandle": (ctypes.POINTER(_Handle), pointer),
            "cudaIpcOpenMemHandle": (ctypes.POINTER(pointer), _Handle, ctypes.c_uint),
            "cudaIpcCloseMemHandle": (pointer,),
        }
        for name, arguments in signatures.items():
            function = getattr(self._library, name)
            function.argtypes = arguments
            function.restype = ctypes.c_int
        self._library.cudaGetErrorString.argtypes = (ctypes.c_int,)
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: object) -> None:
        """Call a function by its name."""
        status = getattr(self._library, name)(*arguments)
        if status:
            self._library.cudaGetLastError()  # otherwise torch would find the error again
            text = self._library.cudaGetErrorString(status)
            raise CudaError(f"{name}: {text.decode()} ({status})")


class CudaBuffer:
    """An allocation of `nbytes` bytes on a GPU, made here or opened from another process.

    ``words``: how many int64 there are behind it. What another process has made must be closed
    before that process frees it, and is lost when that process dies.
    """

    def __init__(
        self, runtime: CudaRuntime, address: int, nbytes: int, words: int, device: torch.device
    ) -> None:
        self.nbytes = nbytes
        self._runtime = runtime
        self._address = address
        self._device = device
        self._owner = True
        self._words = words

    @classmethod
    def create(
        cls, runtime: CudaRuntime, nbytes: int, words: int, device: torch.device
    ) -> CudaBuffer:
        """A new zeroed buffer on `device`. Raises ConfigError when there is no room for it."""
        if nbytes <= 0:
            raise ValueError(f"a buffer needs at least one byte, not {nbytes}")
        size = _whole(_whole(nbytes, _ALIGNMENT) + 8 * words, _GRANULE)
        address = ctypes.c_void_p()
        with torch.cuda.device(device):
            try:
                runtime.call("cudaMalloc", ctypes.byref(address), size)
            except CudaError as error:
                raise ConfigError(
                    f"{size} bytes do not fit onto {device} ({error}); lower "
                    "--gpu-memory-utilization or --kv-cache-memory"
                ) from error
            runtime.call("cudaMemset", address, 0, size)
            torch.cuda.synchronize(device)
        return cls(runtime, address.value or 0, nbytes, words, device)

    @classmethod
    def open(
        cls, runtime: CudaRuntime, handle: bytes, nbytes: int, words: int, device: torch.device
    ) -> CudaBuffer:
        """The buffer behind another process's handle, on the same GPU.

        Raises ConfigError when the system does not allow that.
        """
        address = ctypes.c_void_p()
        with torch.cuda.device(device):
            try:
                runtime.call(
                    "cudaIpcOpenMemHandle",
                    ctypes.byref(address),
                    _Handle.from_buffer_copy(handle),
                    _LAZY_PEER_ACCESS,
                )
            except CudaError as error:
                raise ConfigError(
                    f"memory of {device} cannot be shared between processes here ({error}); in "
                    "containers all processes need one PID and one IPC namespace; else use "
                    "--topology unified"
                ) from error
        buffer = cls(runtime, address.value or 0, nbytes, words, device)
        buffer._owner = False
        return buffer

    def handle(self) -> bytes:
        """The 64 bytes by which other processes open the buffer.

        Raises ConfigError when the system does not allow that.
        """
        handle = _Handle()
        try:
            self._runtime.call(
                "cudaIpcGetMemHandle", ctypes.byref(handle), ctypes.c_void_p(self._address)
            )
        except CudaError as error:
            raise ConfigError(
                f"memory of {self._device} cannot be shared between processes on this system "
                f"({error}); use --topology unified"
            ) from error
        return bytes(handle)

    def tensor(self) -> torch.Tensor:
        """The buffer as uint8 [nbytes] on the device; not to be used after :meth:`close`."""
        return self._view(0, self.nbytes, torch.uint8)

    def words(self) -> torch.Tensor:
        """The words behind the buffer as int64 [words] on the device."""
        return self._view(_whole(self.nbytes, _ALIGNMENT), self._words, torch.int64)

    def close(self) -> None:
        """Free the memory if it was made here, else unmap it."""
        if self._address:
            name = "cudaFree" if self._owner else "cudaIpcCloseMemHandle"
            self._runtime.call(name, ctypes.c_void_p(self._address))
            self._address = 0

    def _view(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        if not self._address:
            raise ValueError("the buffer is closed")
        return DeviceArray(self._address + offset, (count,), dtype).tensor(self._device)


def gpu_uuid(device: torch.device) -> str:
    """The name of a GPU that all processes know it by, whatever they may see of others."""
    return str(torch.cuda.get_device_properties(device).uuid)


def check_allocator() -> None:
    """Raise ConfigError when torch's allocator is set up in a way that breaks CUDA IPC."""
    for variable in _ALLOCATOR_VARIABLES:
        settings = os.environ.get(variable, "").replace(" ", "").lower()
        if "expandable_segments:true" in settings or "backend:cudamallocasync" in settings:
            raise ConfigError(
                f"{variable}={os.environ[variable]} cannot be combined with memory that several "
                "processes use: remove expandable_segments and cudaMallocAsync from it, or use "
                "--topology unified"
            )


def _whole(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit
