"""A GPU that is not there: the calls of torch.cuda that the measurements make, done by the CPU.

Memory shared by handle is a memfd, so that several processes work with it as they would on a GPU.
As a program it is ``python fake_gpu.py MODULE …``: that module's main with the fake installed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from bench.gpu_facts import attention, gpu, hop, ipc, machine, overlap, peers, slicing, workloads
from pdv_mp.config import ConfigError
from pdv_mp.memory.shared import SharedBuffer
from pdv_mp.model.architecture import ModelConfig, RopeConfig

UUID = "01234567-89ab"


class FakeEvent:
    def __init__(self, enable_timing: bool = False, interprocess: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: object = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeEvent) -> float:
        return max(1e-6, 1000 * (other.at - self.at))

    def ipc_handle(self) -> bytes:
        return b"event"

    @classmethod
    def from_ipc_handle(cls, device: object, handle: bytes) -> FakeEvent:
        assert handle == b"event"
        return cls()


class FakeStream:
    def __init__(self, device: object = None, priority: int = 0) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass

    def wait_event(self, event: FakeEvent) -> None:
        assert isinstance(event, FakeEvent)

    def synchronize(self) -> None:
        pass


class FakeGraph:
    def replay(self) -> None:
        time.sleep(1e-4)


class FakeRuntime:
    pass


class FakeBuffer:
    """CudaBuffer over a memfd."""

    def __init__(self, shared: SharedBuffer, nbytes: int, words: int) -> None:
        self._shared, self._nbytes, self._words = shared, nbytes, words

    @classmethod
    def create(cls, runtime: object, nbytes: int, words: int, device: object) -> FakeBuffer:
        return cls(SharedBuffer.create(nbytes + 8 * words, "fake-gpu"), nbytes, words)

    @classmethod
    def open(
        cls, runtime: object, handle: bytes, nbytes: int, words: int, device: object
    ) -> FakeBuffer:
        pid, fd, inode = json.loads(handle)
        try:
            shared = SharedBuffer.open(pid, fd, inode, nbytes + 8 * words, writable=True)
        except OSError as error:
            raise ConfigError(f"memory cannot be shared ({error})") from error
        return cls(shared, nbytes, words)

    def handle(self) -> bytes:
        return json.dumps([os.getpid(), self._shared.fd, self._shared.inode]).encode()

    def tensor(self) -> torch.Tensor:
        return self._shared.tensor()[: self._nbytes]

    def words(self) -> torch.Tensor:
        return self._shared.tensor()[self._nbytes :].view(torch.int64)

    def close(self) -> None:
        self._shared.close()


@contextlib.contextmanager
def _context(value: object) -> Iterator[None]:
    yield


_TINY = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=50,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=16,
    rms_norm_eps=1e-5,
    rope=RopeConfig(10000.0),
    max_position_embeddings=4096,
)


def install() -> None:
    """Put the fake in the place of the GPU, for this process."""
    gpu.device = lambda: torch.device("cpu")
    gpu.used_bytes = lambda: time.monotonic_ns()
    gpu.nvml_handle = lambda: None
    cuda = {
        "is_available": lambda: True,
        "synchronize": lambda device=None: None,
        "Event": FakeEvent,
        "Stream": FakeStream,
        "stream": _context,
        "current_stream": lambda device=None: FakeStream(),
        "CUDAGraph": FakeGraph,
        "graph": _context,
        "get_device_properties": lambda device: SimpleNamespace(
            name="no GPU",
            multi_processor_count=1,
            total_memory=1 << 30,
            major=0,
            minor=0,
            uuid=UUID,
        ),
        "get_allocator_backend": lambda: "native",
    }
    for name, value in cuda.items():
        setattr(torch.cuda, name, value)
    torch.Tensor.pin_memory = lambda self: self.clone()
    for module in (ipc, hop):
        module.CudaBuffer = FakeBuffer
        module.CudaRuntime = FakeRuntime
    workloads.PAIRS["8B and 1B"] = workloads.Pair(lambda: _TINY, lambda: _TINY)
    workloads.PAIRS["shipped"] = workloads.Pair(lambda: _TINY, lambda: _TINY)
    attention._KV_HEADS, attention._DIM = 2, 16
    slicing._MATRIX = 64
    overlap.BATCH, overlap.CONTEXT = 2, 20
    peers.COMMAND = (sys.executable, __file__, "bench.gpu_facts.peer")
    machine._COMPUTE_MODES = ("default",)


def main() -> int:
    module = sys.argv.pop(1)
    install()
    found: Any = importlib.import_module(module)
    return int(found.main() or 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
