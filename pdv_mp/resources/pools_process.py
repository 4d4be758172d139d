"""The process that owns what several workers map: the weights of both models, and their KV.

It loads and allocates, then does nothing but answer workers that want to attach. Its memory stays
when a worker dies. What one process has mapped stays valid when this one dies, but the workers are
then started again with it, because a worker that attaches later must find the same memory.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import zmq

from pdv_mp.binding import bind_ipc
from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.control import ControlClient
from pdv_mp.memory.cuda_ipc import CudaBuffer, CudaRuntime, check_allocator, gpu_uuid
from pdv_mp.memory.shared import SharedBuffer
from pdv_mp.resources.resource_plan import (
    BufferPlan,
    PlannedModel,
    make_plan,
    planned_kv_budget,
)
from pdv_mp.resources.resources import load_into
from pdv_mp.topology import POOLS
from pdv_mp.wire import pools as wire
from pdv_mp.wire.control import Ready, Stop
from pdv_mp.wire.frames import WireError
from pdv_mp.workers.device import use_device

logger = logging.getLogger(__name__)


class SharedPools:
    """The memory of a server with several workers: loaded, allocated, and offered to them.

    ``progress`` is told what is being done. Raises ConfigError or ModelError when the configuration
    cannot be served, and ConfigError when this system does not let processes share memory.
    """

    def __init__(self, config: EngineConfig, progress: Callable[[str], None]) -> None:
        self.plan = make_plan(config, progress)
        self._workers = self.plan.topology.worker_names
        self._nonces: dict[str, int] = {}
        self._magic = secrets.randbits(63)
        self._memfds: dict[str, SharedBuffer] = {}
        self._device_memory: dict[str, CudaBuffer] = {}
        self._runtime: CudaRuntime | None = None
        if self.plan.device.type == "cuda":
            check_allocator()
            self._runtime = CudaRuntime()
        for model in self.plan.models if self.plan.emulated is None else ():
            progress(f"loading the weights of {model.name}")
            self._load(config, model)
        budget = planned_kv_budget(config, self.plan, other_processes=len(self._workers))
        self.num_blocks = self.plan.count_blocks(budget)
        progress("allocating the KV of all workers")
        for buffer in self.plan.kv_buffers(self.num_blocks):
            self._allocate(buffer)
        words = 1 + len(self._workers)
        self._allocate(BufferPlan(wire.HANDSHAKE, 8 * words, on_device=False))
        self._words = self._memfds[wire.HANDSHAKE].tensor().numpy().view(np.int64)
        self._words[0] = self._magic

    def _load(self, config: EngineConfig, model: PlannedModel) -> None:
        buffer = self.plan.weights_buffer(model)
        self._allocate(buffer)
        if buffer.name in self._device_memory:
            memory = self._device_memory[buffer.name].tensor()
            load_into(config, self.plan, model, memory)
            torch.cuda.synchronize(self.plan.device)
            return
        load_into(config, self.plan, model, self._memfds[buffer.name].tensor())
        # No tensor over the memory is left, so that it can be closed to all writing.
        self._memfds[buffer.name] = self._memfds[buffer.name].sealed()

    def _allocate(self, buffer: BufferPlan) -> None:
        if buffer.on_device and self._runtime is not None:
            words = 1 + len(self._workers)
            memory = CudaBuffer.create(self._runtime, buffer.nbytes, words, self.plan.device)
            memory.words()[0] = self._magic
            torch.cuda.synchronize(self.plan.device)
            self._device_memory[buffer.name] = memory
            return
        self._memfds[buffer.name] = SharedBuffer.create(buffer.nbytes, f"pdv_mp-{buffer.name}")

    def facts(self, config: EngineConfig) -> dict[str, object]:
        """What the supervisor is told of this process."""
        return {
            "fingerprint": config.fingerprint,
            "device": str(self.plan.device),
            "kv_blocks": self.num_blocks,
            "buffers": {name: part.nbytes for name, part in self._all().items()},
        }

    def offer(self, worker: str) -> wire.Offer:
        """What a worker process is told, with a nonce for this time.

        Raises ConfigError when the system does not let processes share memory of the GPU.
        """
        self._nonces[worker] = secrets.randbits(63)
        return wire.Offer(
            pid=os.getpid(),
            num_blocks=self.num_blocks,
            magic=self._magic,
            nonce=self._nonces[worker],
            answer=self._answer(worker),
            gpu=gpu_uuid(self.plan.device) if self._device_memory else "",
            memfds=tuple(
                wire.Memfd(name, part.fd, part.inode, part.nbytes, not part.writable)
                for name, part in self._memfds.items()
            ),
            device_memory=tuple(
                wire.DeviceMemory(name, part.handle(), part.nbytes, 1 + len(self._workers))
                for name, part in self._device_memory.items()
            ),
        )

    def check_answer(self, worker: str, names: Sequence[str]) -> None:
        """Raise ConfigError unless a worker has written its nonce into the handshake and into those
        named buffers that lie on the device."""
        index = self._answer(worker)
        found = {wire.HANDSHAKE: int(self._words[index])}
        for name in names:
            if name in self._device_memory:
                found[name] = int(self._device_memory[name].words()[index])
        strangers = sorted(name for name, word in found.items() if word != self._nonces[worker])
        if strangers:
            raise ConfigError(
                f"what {worker} writes into its mapping of {', '.join(strangers)} does not arrive "
                "in the pools process: this system does not let processes share memory; use "
                "--topology unified"
            )

    def close(self) -> None:
        """Close all descriptors and free memory of the device."""
        del self._words
        for part in self._all().values():
            part.close()

    def _all(self) -> dict[str, SharedBuffer | CudaBuffer]:
        return {**self._memfds, **self._device_memory}

    def _answer(self, worker: str) -> int:
        return 1 + self._workers.index(worker)


def run_pools(config: EngineConfig, run_dir: Path, control: ControlClient) -> None:
    """Serve as the process ``pools`` until the supervisor says stop.

    Raises ConfigError or ModelError when the configuration cannot be served.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    try:
        router.setsockopt(zmq.LINGER, 0)
        bind_ipc(router, run_dir / wire.POOLS_SOCKET)
        use_device(config, POOLS)
        pools = SharedPools(config, control.progress)
        try:
            control.send(Ready(name=POOLS, facts=pools.facts(config)))
            _serve(pools, config.fingerprint, router, control)
        finally:
            pools.close()
    finally:
        router.close()
        context.term()


def _serve(
    pools: SharedPools, fingerprint: str, router: zmq.Socket[bytes], control: ControlClient
) -> None:
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    poller.register(control.socket, zmq.POLLIN)
    while True:
        while (order := control.receive()) is not None:
            if isinstance(order, Stop):
                return
        while (frames := _receive(router)) is not None:
            answer = _answer(pools, fingerprint, frames[-1])
            router.send_multipart([frames[0], wire.encode_pools(answer)], zmq.NOBLOCK)
        poller.poll()


def _receive(router: zmq.Socket[bytes]) -> list[bytes] | None:
    try:
        return router.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None


def _answer(pools: SharedPools, fingerprint: str, frame: bytes) -> wire.PoolsMessage:
    """The answer to a worker's message."""
    try:
        message = wire.decode_pools(frame)
        if not isinstance(message, (wire.Attach, wire.Attached)):
            raise WireError(f"the pools cannot handle a {type(message).__name__} message")
        if message.name not in pools.plan.topology.worker_names:
            raise WireError(f"there is no worker {message.name!r}")
        if isinstance(message, wire.Attach):
            if message.fingerprint != fingerprint:
                raise ConfigError(f"{message.name} has another configuration than the pools")
            return pools.offer(message.name)
        pools.check_answer(message.name, message.buffers)
    except (WireError, ConfigError) as error:
        logger.error("%s", error)
        return wire.Refused(str(error))
    return wire.Welcome()
