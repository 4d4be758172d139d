"""A front in a thread, with the supervisor's and the worker's ends of its sockets in the test.

Tests in other folders import it as ``front.front_harness``.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pdv_mp.config import EngineConfig
from pdv_mp.control import ControlClient, control_endpoint
from pdv_mp.front import run_front
from pdv_mp.timeline import Timeline, state_index
from pdv_mp.topology import Topology, topology_of
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import engine as wire
from pdv_mp.wire import tokenize as texts_wire
from pdv_mp.wire.frames import BatchStamps
from pdv_mp.workers.flight_record import FlightRecord, record_path

WAIT_MS = 10_000
CORPUS = [
    "def decode(self, frame):\n    return frame.split(b'\\n')\n",
    "for index, character in enumerate(text):\n    print(index, character)\n",
    "Größe, naïve café, déjà vu, 日本語のテキスト, emoji 🙂🙃\n",
    "the quick brown fox jumps over the lazy dog STOP and END\n",
]
MAX_MODEL_LEN = 64
EOS = "<|end|>"


def small_tokenizer() -> Tokenizer:
    """A small byte-level BPE tokenizer with one special token."""
    result = Tokenizer(models.BPE())
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    result.train_from_iterator(CORPUS * 4, trainer)
    return result


Logprob = tuple[float, list[tuple[int, float]]]
"""The log-probability of a token, and the alternatives with theirs."""


def logprob_columns(rows: list[Logprob | None]) -> wire.LogprobColumns:
    """The columns of some rows; None is one of a request that asked for nothing."""
    tops = [pair for row in rows if row is not None for pair in row[1]]
    return wire.LogprobColumns(
        chosen=np.array([0.0 if row is None else row[0] for row in rows], np.float32),
        widths=np.array([-1 if row is None else len(row[1]) for row in rows], np.int32),
        top_ids=np.array([id for id, _ in tops], np.int32),
        top=np.array([logprob for _, logprob in tops], np.float32),
    )


@dataclasses.dataclass
class Entry:
    """One entry of a Tokens message."""

    request: int
    ids: list[int] = dataclasses.field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    finish: wire.Finish = wire.Finish.NONE
    stop_id: int = -1
    cached: int = 0
    message: str | None = None
    timeline: list[Any] | None = None
    logprobs: list[Logprob] | None = None


class FakeEngine:
    """The worker's end of the edge; tests say what it answers.

    ``early``: messages that a test has met while it waited for others, to be received yet."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run_dir: Path,
        generation: int = 0,
        replica: int = 0,
    ) -> None:
        self.generation = generation
        self.early: list[wire.EngineMessage] = []
        self.socket = context.socket(zmq.PAIR)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self.socket.setsockopt(option, 0)
        self.socket.connect(f"ipc://{run_dir / wire.engine_socket(generation, replica)}")

    def send(self, message: wire.EngineMessage, encode_ns: int | None = None) -> None:
        self.socket.send(wire.encode(message, self.generation, encode_ns))

    def receive(self, kind: type[Any], wait_ms: int = WAIT_MS) -> Any:
        if self.early:
            message = self.early.pop(0)
        else:
            assert self.socket.poll(wait_ms), f"no {kind.__name__} came"
            message, _ = wire.decode(self.socket.recv(), time.monotonic_ns())
        assert isinstance(message, kind), message
        return message

    def emit(self, *entries: Entry, emitted_ns: int | None = None) -> None:
        """Send one Tokens message, of tokens that the scheduler had then, without it now."""

        def column(values: list[int]) -> wire.Int32Column:
            return np.array(values, np.int32)

        encode_ns = time.monotonic_ns()
        rows: list[Logprob | None] = []
        for entry in entries:
            rows += entry.logprobs or [None] * len(entry.ids)
        timelines = []
        for index, entry in enumerate(entries):
            if entry.timeline is not None:
                timeline = Timeline.unpack(entry.timeline)
                timeline.enter(state_index("verify.compute"), timeline.since)
                timeline.enter(state_index("verify>front.encode"), encode_ns)
                timelines.append((index, timeline.pack()))
        self.send(
            wire.Tokens(
                queued_ns=np.zeros(len(entries), np.int64),
                requests=np.array([entry.request for entry in entries], np.int64),
                counts=column([len(entry.ids) for entry in entries]),
                drafted=column([entry.drafted for entry in entries]),
                accepted=column([entry.accepted for entry in entries]),
                finish=column([int(entry.finish) for entry in entries]),
                stop_ids=column([entry.stop_id for entry in entries]),
                cached=column([entry.cached for entry in entries]),
                ids=column([id for entry in entries for id in entry.ids]),
                timelines=timelines,
                messages=[
                    (index, entry.message)
                    for index, entry in enumerate(entries)
                    if entry.message is not None
                ],
                logprobs=logprob_columns(rows) if any(rows) else None,
                emitted_ns=encode_ns if emitted_ns is None else emitted_ns,
            ),
            encode_ns,
        )


class FakeTokenizer:
    """The tokenizer's end of the edge; tests say what it answers."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], run_dir: Path, name: str, generation: int = 0
    ) -> None:
        self.generation = generation
        self.socket = context.socket(zmq.PAIR)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self.socket.setsockopt(option, 0)
        self.socket.connect(f"ipc://{run_dir / texts_wire.tokenizer_socket(name, generation)}")

    def send(self, message: texts_wire.TokenizerMessage, encode_ns: int | None = None) -> None:
        self.socket.send(texts_wire.encode(message, self.generation, encode_ns))

    def receive(self, wait_ms: int = WAIT_MS) -> texts_wire.Texts:
        assert self.socket.poll(wait_ms), "no texts came"
        message, generation = texts_wire.decode(self.socket.recv(), time.monotonic_ns())
        assert isinstance(message, texts_wire.Texts)
        assert generation == self.generation
        return message

    @property
    def has_nothing(self) -> bool:
        """Whether no texts come for a moment."""
        return not self.socket.poll(50)

    def answer(self, texts: texts_wire.Texts, *ids: list[int] | None, busy_ns: int = 0) -> None:
        """Answer all of these texts; None for one that could not be tokenized."""
        picked = time.monotonic_ns()
        order = texts.stamps
        stamps = (order.encode_ns, order.sent_ns, order.received_ns, order.decoded_ns)
        counts = [texts_wire.FAILED if found is None else len(found) for found in ids]
        self.send(
            texts_wire.Ids(
                keys=texts.keys,
                counts=np.array(counts, np.int32),
                ids=np.array([id for found in ids for id in found or []], np.int32),
                batch=BatchStamps(picked, picked + 10, time.monotonic_ns() + 20),
                orders=np.array([stamps] * len(ids), np.int64),
                busy_ns=np.array([busy_ns] * len(ids), np.int64),
            ),
            time.monotonic_ns() + 30,
        )


class FakeClient:
    """A DEALER that sends and receives raw messages."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, queue: int = 1000
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, queue)
        self.socket.connect(endpoint)

    def send(self, type: str, **fields: Any) -> None:
        self.socket.send(msgpack.packb({"v": 1, "type": type, **fields}))

    def receive(self, wait_ms: int = WAIT_MS) -> dict[str, Any]:
        """The next message that is not ``alive``."""
        while True:
            assert self.socket.poll(wait_ms), "no answer came"
            message: dict[str, Any] = msgpack.unpackb(self.socket.recv())
            assert message["v"] == 1
            if message["type"] != "alive":
                return message

    def expect(self, type: str, **fields: Any) -> dict[str, Any]:
        message = self.receive()
        assert message["type"] == type, message
        for name, value in fields.items():
            assert message[name] == value, message
        return message

    def ask_until_answered(self) -> dict[str, Any]:
        """Read all that was sent, up to the answer to a new ping. What waits while nobody reads may
        be too much again and take the answer to a ping behind it along: then it is asked again."""
        for n in range(-1, -20, -1):
            self.send("ping", n=n)
            while self.socket.poll(500):
                message = self.receive()
                if message.get("n") == n:
                    return message
        raise AssertionError("no answer came to any of 19 pings")

    def until_last(self, id: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The ``tokens`` of one request and its ``done`` or ``error``, checked for their rules."""
        tokens: list[dict[str, Any]] = []
        while True:
            message = self.receive()
            if message.get("id") != id:
                continue
            if message["type"] in ("done", "error"):
                return tokens, message
            if message["type"] == "tokens":
                assert message["seq"] == len(tokens)
                assert message["offset"] == sum(len(item["ids"]) for item in tokens)
                assert len(message["drafted"]) == len(message["ids"])
                tokens.append(message)


class FrontUnderTest:
    """A running front, and everything around it; ``engines`` are by replica, ``tokenizers`` by
    number."""

    def __init__(
        self, model_folder: Path, credits: int = 4, table: Topology | None = None, **options: Any
    ) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="pdvt-")
        self.run_dir = Path(self.folder.name)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.supervisor = self.context.socket(zmq.ROUTER)
        self.supervisor.setsockopt(zmq.LINGER, 0)
        self.supervisor.bind(control_endpoint(self.run_dir))
        self.config = EngineConfig.from_options(
            **{"model": str(model_folder), "draft_model": "none", "port": 0, **options}
        )
        self.config = dataclasses.replace(self.config, table=table)
        row = topology_of(self.config)
        self.names, self.tokenizer_names = row.scheduler_names, row.tokenizer_names
        self.facts = {
            "fingerprint": self.config.fingerprint,
            "vocab_size": 400,
            "eos_ids": [0],
            "max_model_len": MAX_MODEL_LEN,
            "max_request_tokens": MAX_MODEL_LEN,
            "credits": credits,
            "model": "tiny",
            "draft_model": None,
            "device": "cpu",
        }
        self.error: BaseException | None = None
        self._heard = threading.Event()
        self.thread = threading.Thread(target=self._run, name="front-under-test")
        self.thread.start()
        self.routing_id, hello = self._control()
        self._heard.set()
        assert isinstance(hello, control_wire.Hello)
        self.engines = [
            FakeEngine(self.context, self.run_dir, replica=replica)
            for replica in range(len(self.names))
        ]
        self.tokenizers = [
            FakeTokenizer(self.context, self.run_dir, name) for name in self.tokenizer_names
        ]
        self.clients: list[FakeClient] = []

    def _run(self) -> None:
        control = ControlClient(self.run_dir, "front")
        try:
            generations = dict.fromkeys((*self.names, *self.tokenizer_names), 0)
            run_front(self.config, self.run_dir, control, generations)
        except (RuntimeError, ValueError) as error:
            self.error = error
            traceback.print_exc()
        finally:
            self._heard.wait(WAIT_MS / 1000)  # a socket that closes at once takes its hello along
            control.close()

    @property
    def engine(self) -> FakeEngine:
        """The engine of the first replica."""
        return self.engines[0]

    def start(self) -> FrontUnderTest:
        for replica in range(len(self.names)):
            self.revive_engine(replica)
        for number in range(len(self.tokenizers)):
            self.revive_tokenizer(number)
        ready = self.expect_control(control_wire.Ready)
        self.endpoint, self.ipc = ready.facts["endpoint"], ready.facts["ipc"]
        return self

    def _control(self) -> tuple[bytes, control_wire.ControlMessage]:
        assert self.supervisor.poll(WAIT_MS), "the front said nothing to the supervisor"
        routing_id, frame = self.supervisor.recv_multipart()
        return routing_id, control_wire.decode_control(frame)

    def expect_control(self, kind: type[Any]) -> Any:
        message = self._control()[1]
        assert isinstance(message, kind), message
        return message

    def order(self, message: control_wire.SupervisorMessage) -> None:
        self.supervisor.send_multipart([self.routing_id, control_wire.encode_control(message)])

    def kill_engine(self, *batch: int, restarts_left: int = 9, replica: int = 0) -> None:
        """A worker dies while it works on these requests. Its engine is that of its successor then,
        which has not said that it is ready."""
        name, generation = self.names[replica], self.engines[replica].generation
        record = FlightRecord(record_path(self.run_dir, name, generation), 64)
        record.enter(batch)
        record.close()
        self.engines[replica].socket.close(linger=0)
        self.order(control_wire.Restarting(name, generation + 1, restarts_left))
        self.engines[replica] = FakeEngine(self.context, self.run_dir, generation + 1, replica)

    def revive_engine(self, replica: int = 0, **facts: Any) -> None:
        """A worker, or its successor, is ready, with other facts than usual where given."""
        processes = {self.names[replica]: os.getpid()}
        facts = {**self.facts, "processes": processes, **facts}
        self.engines[replica].send(wire.EngineReady(facts=facts))

    def kill_tokenizer(self, *batch: int, restarts_left: int = 9, number: int = 0) -> None:
        """A tokenizer dies while it works on these texts, by key. It is that of its successor then,
        which has not said that it is ready."""
        name, generation = self.tokenizer_names[number], self.tokenizers[number].generation
        record = FlightRecord(record_path(self.run_dir, name, generation), 64)
        record.enter(batch)
        record.close()
        self.tokenizers[number].socket.close(linger=0)
        self.order(control_wire.Restarting(name, generation + 1, restarts_left))
        self.tokenizers[number] = FakeTokenizer(self.context, self.run_dir, name, generation + 1)

    def revive_tokenizer(self, number: int = 0) -> None:
        """A tokenizer, or its successor, is ready."""
        tokenizer = self.tokenizers[number]
        processes = {self.tokenizer_names[number]: os.getpid() + tokenizer.generation}
        facts = {"fingerprint": self.config.fingerprint, "processes": processes}
        tokenizer.send(texts_wire.TokenizerReady(facts=facts))

    def client(self, endpoint: str | None = None) -> FakeClient:
        self.clients.append(FakeClient(self.context, endpoint or self.endpoint))
        return self.clients[-1]

    def client_with_short_queue(self) -> FakeClient:
        """One for which the front soon has to keep what is not read."""
        self.clients.append(FakeClient(self.context, self.ipc, queue=1))
        return self.clients[-1]

    def close(self) -> None:
        if self.thread.is_alive():
            self.order(control_wire.Stop())
        self.thread.join(20)
        alive = self.thread.is_alive()
        others = (other.socket for other in (*self.engines, *self.tokenizers, *self.clients))
        for socket in (self.supervisor, *others):
            socket.close(linger=0)
        self.context.term()
        self.folder.cleanup()
        assert not alive, "the front did not stop"
