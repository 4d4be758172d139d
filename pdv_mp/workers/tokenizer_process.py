"""A process that tokenizes prompts for the front, so that a long one delays no other's tokens."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq

from pdv_mp.config import ConfigError, EngineConfig, HandoffOptions
from pdv_mp.control import ControlClient
from pdv_mp.front.text import TextCodec, TextError
from pdv_mp.lanes.injected_delay import HeldFrames, delay_of, parse_delays, receive_frame
from pdv_mp.lanes.waiting import Waiting
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import tokenize as wire
from pdv_mp.wire.frames import BatchStamps, Stamps
from pdv_mp.workers.flight_record import FlightRecord, record_path
from pdv_mp.workers.trace import Trace, open_trace

MAX_BATCH_BYTES = 16 * 1024
"""Bytes of text in a batch of several; a text waits for its batch and for those before it."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A text in the inbox. ``busy_ns``: how long this process had computed when it came."""

    key: int
    data: bytes
    bare: bool
    order: Stamps
    busy_ns: int


class BatchTokenizer:
    """Tokenizes texts in the order in which they come, in batches.

    ``before``: called with the key of each text before it is tokenized.
    """

    def __init__(self, codec: TextCodec, before: Callable[[Sequence[int]], None]) -> None:
        self._codec = codec
        self._before = before
        self._inbox: deque[_Waiting] = deque()
        self._busy_ns = 0

    def take(self, message: wire.Texts) -> None:
        """Put texts into the inbox."""
        columns = (message.keys.tolist(), message.split(), message.bare.tolist())
        for key, data, bare in zip(*columns, strict=True):
            self._inbox.append(_Waiting(key, data, bool(bare), message.stamps, self._busy_ns))

    def step(self) -> wire.Ids | None:
        """Tokenize a batch; None if nothing waits."""
        if not self._inbox:
            return None
        picked_ns = time.monotonic_ns()
        batch = self._pick()
        started_ns = time.monotonic_ns()
        found = [self._tokenize(text) for text in batch]
        stamps = BatchStamps(picked_ns, started_ns, time.monotonic_ns())
        stamped = [text.order for text in batch]
        orders = [(o.encode_ns, o.sent_ns, o.received_ns, o.decoded_ns) for o in stamped]
        message = wire.Ids(
            keys=np.array([text.key for text in batch], np.int64),
            counts=np.array([wire.FAILED if ids is None else len(ids) for ids in found], np.int32),
            ids=np.array([id for ids in found if ids is not None for id in ids], np.int32),
            batch=stamps,
            orders=np.array(orders, np.int64),
            busy_ns=np.array([self._busy_ns - text.busy_ns for text in batch], np.int64),
        )
        self._busy_ns += stamps.ended_ns - stamps.picked_ns
        return message

    def _pick(self) -> list[_Waiting]:
        batch = [self._inbox.popleft()]
        size = len(batch[0].data)
        while self._inbox and size + len(self._inbox[0].data) <= MAX_BATCH_BYTES:
            batch.append(self._inbox.popleft())
            size += len(batch[-1].data)
        return batch

    def _tokenize(self, text: _Waiting) -> list[int] | None:
        self._before((text.key,))
        try:
            return self._codec.encode(text.data.decode(), bare=text.bare)
        except TextError:  # the log has it
            return None


class TokenizerEdge:
    """The tokenizer's end of its edge to the front: a PAIR socket.

    Sends never block: the queue is unbounded, and what can wait in it is bounded by the texts that
    the front lets a tokenizer have.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run_dir: Path,
        name: str,
        generation: int,
        held: HeldFrames | None = None,
    ) -> None:
        self._held = held
        self._generation = generation
        self.socket = context.socket(zmq.PAIR)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self.socket.setsockopt(option, 0)
        self.socket.connect(f"ipc://{run_dir / wire.tokenizer_socket(name, generation)}")

    def send(self, message: wire.TokenizerMessage, encode_ns: int | None = None) -> None:
        """Encode a message and hand it to the socket."""
        self.socket.send(wire.encode(message, self._generation, encode_ns), zmq.NOBLOCK)

    def receive(self) -> wire.Texts | None:
        """The next texts that have arrived, or None. Raises WireError for anything else."""
        frame = receive_frame(self.socket, self._held)
        if frame is None:
            return None
        message, generation = wire.decode(frame, time.monotonic_ns())
        if not isinstance(message, wire.Texts) or generation != self._generation:
            kind = type(message).__name__
            raise wire.WireError(f"a tokenizer cannot handle a {kind} of generation {generation}")
        return message

    @property
    def due_ns(self) -> int | None:
        """When a frame that is held back will be due (monotonic), None if none is."""
        return None if self._held is None else self._held.due_ns

    def close(self) -> None:
        """Close the socket; what has not been sent is dropped."""
        self.socket.close()


def run_tokenizer(
    config: EngineConfig,
    name: str,
    run_dir: Path,
    control: ControlClient,
    generations: Mapping[str, int],
) -> None:
    """Serve as the tokenizer ``name`` until the supervisor says stop.

    Raises ConfigError when there is no tokenizer that can be used.
    """
    if config.model.model is None:
        raise ConfigError("--model is not resolved; start the server through pdv-launch")
    codec = TextCodec(Path(config.model.model))
    generation = generations[name]
    record = FlightRecord(record_path(run_dir, name, generation), 1)
    trace = open_trace(config, run_dir, name, generation)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    held = delay_of(parse_delays(config.handoff.inject_delay), "front>tokenizer")
    edge = TokenizerEdge(context, run_dir, name, generation, held)
    waiting = Waiting(HandoffOptions())  # asleep, whatever --wait says: that is for workers
    try:
        facts = {"fingerprint": config.fingerprint, "processes": {name: os.getpid()}}
        edge.send(wire.TokenizerReady(facts=facts))
        control.send(control_wire.Ready(name=name, facts=facts))
        _serve(BatchTokenizer(codec, record.enter), edge, control, record, waiting, trace)
    finally:
        waiting.close()
        edge.close()
        context.term()
        record.close()
        if trace is not None:
            trace.close()


def _serve(
    tokenizer: BatchTokenizer,
    edge: TokenizerEdge,
    control: ControlClient,
    record: FlightRecord,
    waiting: Waiting,
    trace: Trace | None,
) -> None:
    waiting.register(edge.socket)
    waiting.register(control.socket)
    while True:
        while (order := control.receive()) is not None:
            if isinstance(order, control_wire.Stop):
                return
            kind = type(order).__name__
            raise control_wire.ControlError(f"a tokenizer cannot obey a {kind} message")
        while (message := edge.receive()) is not None:
            tokenizer.take(message)
        result = tokenizer.step()
        record.leave()
        if result is None:
            waiting.wait(edge.due_ns)
            continue
        edge.send(result, time.monotonic_ns())
        if trace is not None:
            batch = result.batch
            stamps = (batch.picked_ns, batch.started_ns, batch.ended_ns)
            trace.batch("tokenizer", stamps, len(result.keys), len(result.ids))
