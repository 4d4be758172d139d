"""How a worker maps what the pools process owns."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zmq

from pdv_mp.config import ConfigError
from pdv_mp.control import ControlClient
from pdv_mp.memory.cuda_ipc import CudaBuffer, CudaRuntime, check_allocator, gpu_uuid
from pdv_mp.memory.shared import SharedBuffer
from pdv_mp.wire import pools as wire
from pdv_mp.wire.control import Stop, SupervisorMessage
from pdv_mp.wire.frames import WireError


@dataclass(frozen=True, slots=True)
class Attachment:
    """Buffers of the pools process, mapped here, by name; ``num_blocks``: of each replica."""

    pools_pid: int
    num_blocks: int
    memfds: dict[str, SharedBuffer]
    device_memory: dict[str, CudaBuffer]

    def tensor(self, name: str) -> torch.Tensor:
        """A buffer as uint8 [nbytes], on the host or the device where it lies."""
        return (self.memfds.get(name) or self.device_memory[name]).tensor()


def attach(
    run_dir: Path,
    process_name: str,
    fingerprint: str,
    buffers: Collection[str],
    device: torch.device,
    control: ControlClient,
    on_message: Callable[[SupervisorMessage], None],
) -> Attachment | None:
    """Map the named buffers; waits until the pools process has loaded them.

    Meanwhile the supervisor's messages go to ``on_message``; None when it says Stop. Raises
    ConfigError when the pools process refuses or this system does not let processes share memory.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"ipc://{run_dir / wire.POOLS_SOCKET}")
        conversation = _Conversation(dealer, control, on_message)
        control.progress("waiting for the weights")
        attachment = None
        failed_pid = 0
        while attachment is None:
            offer = conversation.ask(wire.Attach(process_name, fingerprint))
            if offer is None:
                return None
            if not isinstance(offer, wire.Offer):
                raise WireError(f"the pools answer with a {type(offer).__name__} message")
            try:
                attachment = _map(offer, buffers, device)
            except ConfigError:
                # Memory of a process that has died since cannot be mapped. Only one that lives
                # offers it a second time; the others' successor offers its own.
                if offer.pid == failed_pid:
                    raise
                failed_pid = offer.pid
        control.progress("mapped the weights")
        welcome = conversation.ask(wire.Attached(process_name, tuple(buffers)))
        attachment.memfds.pop(wire.HANDSHAKE).close()
        return None if welcome is None else attachment
    finally:
        dealer.close()
        context.term()


class _Conversation:
    """Questions to the pools process, during which the supervisor is still obeyed."""

    def __init__(
        self,
        dealer: zmq.Socket[bytes],
        control: ControlClient,
        on_message: Callable[[SupervisorMessage], None],
    ) -> None:
        self._dealer = dealer
        self._control = control
        self._on_message = on_message

    def ask(self, message: wire.PoolsMessage) -> wire.PoolsMessage | None:
        """The answer; None when the supervisor says Stop. Raises ConfigError for a refusal."""
        self._dealer.send(wire.encode_pools(message))
        poller = zmq.Poller()
        poller.register(self._dealer, zmq.POLLIN)
        poller.register(self._control.socket, zmq.POLLIN)
        while True:
            while (order := self._control.receive()) is not None:
                if isinstance(order, Stop):
                    return None
                self._on_message(order)
            if self._dealer.poll(0):
                answer = wire.decode_pools(self._dealer.recv())
                if isinstance(answer, wire.Refused):
                    raise ConfigError(answer.message)
                return answer
            poller.poll()


def _map(offer: wire.Offer, buffers: Collection[str], device: torch.device) -> Attachment:
    wanted = {wire.HANDSHAKE, *buffers}
    memfds = {part.name: part for part in offer.memfds if part.name in wanted}
    device_memory = {part.name: part for part in offer.device_memory if part.name in wanted}
    missing = wanted - memfds.keys() - device_memory.keys()
    if missing:
        raise WireError(f"the pools have no {', '.join(sorted(missing))}")
    attachment = Attachment(
        offer.pid,
        offer.num_blocks,
        {name: _map_memfd(offer.pid, part) for name, part in memfds.items()},
        _map_device_memory(offer, device_memory, device) if device_memory else {},
    )
    words = attachment.memfds[wire.HANDSHAKE].tensor().numpy().view(np.int64)
    found = {wire.HANDSHAKE: int(words[0])}
    found |= {name: int(part.words()[0]) for name, part in attachment.device_memory.items()}
    strangers = sorted(name for name, word in found.items() if word != offer.magic)
    if strangers:
        raise ConfigError(
            f"what the pools process has written into {', '.join(strangers)} is not to be seen "
            "here: this system does not let processes share memory; use --topology unified"
        )
    words[offer.answer] = offer.nonce
    for part in attachment.device_memory.values():
        part.words()[offer.answer] = offer.nonce
    if device_memory:
        torch.cuda.synchronize(device)
    return attachment


def _map_memfd(pid: int, part: wire.Memfd) -> SharedBuffer:
    try:
        return SharedBuffer.open(pid, part.fd, part.inode, part.nbytes, not part.constant)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the memory {part.name} of the pools process cannot be mapped ({error}): processes "
            "of one server need one user and one PID namespace; else use --topology unified"
        ) from error


def _map_device_memory(
    offer: wire.Offer, parts: dict[str, wire.DeviceMemory], device: torch.device
) -> dict[str, CudaBuffer]:
    check_allocator()
    own = gpu_uuid(device)
    if own != offer.gpu:
        raise ConfigError(
            f"{device} is GPU {own} here, but {offer.gpu} in the pools process: start all "
            "processes with the same CUDA_VISIBLE_DEVICES"
        )
    runtime = CudaRuntime()
    return {
        name: CudaBuffer.open(runtime, part.handle, part.nbytes, part.words, device)
        for name, part in parts.items()
    }
