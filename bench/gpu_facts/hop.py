"""What it costs to hand work on the GPU from one process to another.

Both processes add 1 to the same word of shared memory in turn, so that the word counts the
hand-overs: it is right only if each kernel saw what the one before it, in the other process, wrote.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from bench.gpu_facts import gpu
from bench.gpu_facts.facts import Report
from bench.gpu_facts.peers import Peer, Talk
from pdv_mp.memory.cuda_ipc import CudaBuffer, CudaRuntime

WAYS = ("message", "host", "event")
"""``message``: nothing but the message. ``host``: the sender waits for its kernel first. ``event``:
it sends at once, and the receiver's stream waits for an event of the sender's."""

_NAMES = {
    "message": "a message alone, one way",
    "host": "kernel, host synchronisation, message, one way",
    "event": "kernel, IPC event, message, one way",
}
_RING = 64  # an event may be recorded anew when the other has long waited for what it was
_SIZE = 1 << 20


def measure_hop(report: Report) -> None:
    """Rounds of hand-overs there and back, in each way."""
    rounds, hand_overs = report.repeats(10, 3), report.repeats(200, 40)
    buffer = CudaBuffer.create(CudaRuntime(), _SIZE, 1, gpu.device())
    try:
        with Peer("hop") as peer:
            events, handles = zip(*(gpu.shared_event() for _ in range(_RING)), strict=True)
            answer = peer.ask(handle=buffer.handle().hex(), events=handles)
            theirs = [gpu.open_event(handle) for handle in answer["events"]]
            count = buffer.words()
            expected = 0
            for way in WAYS:
                found = []
                for turn in range(rounds + 1):
                    peer.ask(way=way, rounds=hand_overs)
                    started = time.perf_counter_ns()
                    _hand_over(peer, way, count, events, theirs, hand_overs, first=True)
                    gpu.synchronize()
                    if turn:
                        found.append((time.perf_counter_ns() - started) / hand_overs / 2000)
                    expected += 0 if way == "message" else 2 * hand_overs
                    if int(count[0]) != expected:
                        raise RuntimeError(
                            f"after {expected} hand-overs ({way}) the word is {int(count[0])}: a "
                            "kernel did not see what the other process had written"
                        )
                report.numbers(_NAMES[way], "µs", found)
        report.text("kernels saw each other's writes", f"in all {expected} hand-overs")
    finally:
        buffer.close()


def hop_peer(talk: Talk) -> None:
    """The other side."""
    order = talk.receive()
    handle = bytes.fromhex(order["handle"])
    buffer = CudaBuffer.open(CudaRuntime(), handle, _SIZE, 1, gpu.device())
    theirs = [gpu.open_event(handle) for handle in order["events"]]
    events, handles = zip(*(gpu.shared_event() for _ in range(_RING)), strict=True)
    talk.send(events=handles)
    while "stop" not in (order := talk.receive()):
        talk.send(ready=True)
        _hand_over(talk, order["way"], buffer.words(), events, theirs, order["rounds"], first=False)
        gpu.synchronize()
    buffer.close()


def _hand_over(
    talk: Talk,
    way: str,
    count: torch.Tensor,
    mine: Sequence[torch.cuda.Event],
    theirs: Sequence[torch.cuda.Event],
    rounds: int,
    first: bool,
) -> None:
    """Send and receive in turn; who is ``first`` sends first."""
    send: Callable[[bytes], object] = talk.socket.send
    receive: Callable[[], object] = talk.socket.recv
    stream = torch.cuda.current_stream()
    for turn in range(rounds):
        if not first:
            receive()
            if way == "event":
                stream.wait_event(theirs[turn % _RING])
        if way != "message":
            count.add_(1)
            mine[turn % _RING].record(stream)
            if way == "host":
                mine[turn % _RING].synchronize()
        send(b"go")
        if first:
            receive()
            if way == "event":
                stream.wait_event(theirs[turn % _RING])
