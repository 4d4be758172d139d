"""Whether processes can share memory of the GPU by raw CUDA IPC handles, and what that costs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import torch

from bench.gpu_facts import gpu
from bench.gpu_facts.facts import Report
from bench.gpu_facts.peers import Peer, PeerError, Talk
from pdv_mp.config import ConfigError
from pdv_mp.memory.cuda_ipc import CudaBuffer, CudaRuntime, gpu_uuid

WORDS = 4
_MAGIC = 0x5DEECE66D
_MIB = 1 << 20


def measure_ipc(report: Report) -> None:
    """One owner, two processes that open its memory, and what the owner's own process gets."""
    size = (64 if report.quick else 512) * _MIB
    runtime = CudaRuntime()
    buffer = CudaBuffer.create(runtime, size, WORDS, gpu.device())
    try:
        report.text("GPU UUID", gpu_uuid(gpu.device()))
        buffer.tensor().fill_(7)
        buffer.words()[0] = _MAGIC
        gpu.synchronize()
        with Peer("importer") as first, Peer("importer") as second:
            opening, speeds = [], []
            for number, peer in enumerate((first, second), 1):
                found = peer.ask(handle=buffer.handle().hex(), size=size, word=number)
                if found["magic"] != _MAGIC or found["sum"] != 7 * 4096:
                    raise RuntimeError(f"a process sees other memory than its owner: {found}")
                if found["uuid"] != gpu_uuid(gpu.device()):
                    raise RuntimeError(f"a process calls the GPU {found['uuid']}")
                opening.append(found["open_ms"])
                speeds += found["gb_per_s"]
            if buffer.words().tolist()[1:3] != [first.pid, second.pid]:
                raise RuntimeError("what the others have written does not reach the owner")
        report.text("contents in both directions, two processes at once", "right")
        report.numbers("cudaIpcOpenMemHandle", "ms", opening)
        report.numbers("read and write through the mapping", "GB/s", speeds)
        own = [
            2 * size / ms / 1e6
            for ms in gpu.device_milliseconds(_copy_of(buffer), report.repeats(20, 5))
        ]
        report.numbers("the same in the owner", "GB/s", own)
        report.text("opening one's own handle", _open_own(runtime, buffer, size))
    finally:
        buffer.close()


def _copy_of(buffer: CudaBuffer) -> Any:
    source = buffer.tensor()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _open_own(runtime: CudaRuntime, buffer: CudaBuffer, size: int) -> str:
    try:
        CudaBuffer.open(runtime, buffer.handle(), size, WORDS, gpu.device()).close()
    except ConfigError as error:
        return f"refused: {error}"
    return "allowed"


def importer_peer(talk: Talk) -> None:
    """Open a buffer, look at it, write this process's id into it, and time copies out of it."""
    runtime = CudaRuntime()
    order = talk.receive()
    started = time.perf_counter_ns()
    handle = bytes.fromhex(order["handle"])
    buffer = CudaBuffer.open(runtime, handle, order["size"], WORDS, gpu.device())
    opened = (time.perf_counter_ns() - started) / 1e6
    buffer.words()[order["word"]] = os.getpid()
    found = {
        "magic": int(buffer.words()[0]),
        "sum": _sum_of(buffer),
        "uuid": gpu_uuid(gpu.device()),
        "open_ms": opened,
        "gb_per_s": [
            2 * order["size"] / ms / 1e6 for ms in gpu.device_milliseconds(_copy_of(buffer), 5)
        ],
    }
    gpu.synchronize()
    talk.send(**found)
    while "look" in talk.receive():
        talk.send(sum=_sum_of(buffer))
    buffer.close()


def _sum_of(buffer: CudaBuffer) -> int:
    return int(buffer.tensor()[-4096:].sum(dtype=torch.int64))


def measure_owner_death(report: Report) -> None:
    """What an importer sees after the owner was killed; CUDA does not say."""
    with Peer("importer") as importer:
        with Peer("owner") as owner:
            made = owner.ask(size=8 * _MIB)
            importer.ask(handle=made["handle"], size=8 * _MIB, word=1)
            os.kill(owner.pid, signal.SIGKILL)
            owner.process.wait()
        try:
            right = importer.ask(look=True)["sum"] == 7 * 4096
            report.text("reading afterwards", "what was there" if right else "other contents")
        except PeerError as error:
            report.text("reading afterwards", f"fails: {error}")
        importer.send(stop=True)
        try:
            status = importer.process.wait(30)
            report.text("closing the mapping afterwards", f"the process ends with status {status}")
        except subprocess.TimeoutExpired:
            report.text("closing the mapping afterwards", "hangs")
    with Peer("owner") as owner:
        made = owner.ask(size=8 * _MIB)
        owner_pid = owner.pid
        with Peer("importer") as importer:
            os.kill(owner_pid, signal.SIGKILL)
            owner.process.wait()
            try:
                importer.ask(handle=made["handle"], size=8 * _MIB, word=1)
                found = "allowed"
            except PeerError as error:
                found = f"refused: {error}"
        report.text("opening a handle of a process that was killed", found)


def share_between_peers(report: Report, environment: Mapping[str, str], what: str) -> None:
    """Whether two processes with that in their environment can share memory."""
    with Peer("owner", environment) as owner, Peer("importer", environment) as importer:
        made = owner.ask(size=8 * _MIB)
        found = importer.ask(handle=made["handle"], size=8 * _MIB, word=1)
        if found["sum"] != 7 * 4096:
            raise RuntimeError(f"{what}: a process sees other contents than its owner's")
        report.text(what, "right")


def owner_peer(talk: Talk) -> None:
    """Own a buffer until told otherwise."""
    order = talk.receive()
    buffer = CudaBuffer.create(CudaRuntime(), order["size"], WORDS, gpu.device())
    buffer.tensor().fill_(7)
    gpu.synchronize()
    talk.send(handle=buffer.handle().hex())
    talk.receive()
    buffer.close()
