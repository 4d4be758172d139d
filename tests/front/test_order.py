"""Many requests at random: each gets its own tokens in order and exactly one last message."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
import zmq
from front.front_harness import Entry, FakeClient, FrontUnderTest

from pdv_mp.front.text import TextCodec
from pdv_mp.wire import engine as wire
from pdv_mp.wire.engine import Finish

STOPS = [[], [], ["e"], ["STOP", "th"], ["é"]]


class RandomRun:
    """Random clients and a random engine around one front, all played in one thread."""

    def __init__(self, front: FrontUnderTest, codec: TextCodec, seed: int, credits: int) -> None:
        self.random = random.Random(seed)
        self.front = front
        self.codec = codec
        self.credits = credits
        self.clients = [front.client(), front.client_with_short_queue(), front.client(front.ipc)]
        self.sent: dict[tuple[int, str], dict[str, Any]] = {}
        self.log: dict[tuple[int, str], list[dict[str, Any]]] = {}
        self.running: dict[int, tuple[int, int]] = {}  # key -> (tokens left, seed)
        self.closed: set[int] = set()
        self.outputs: dict[int, list[int]] = {}  # by seed

    def start(self) -> None:
        number = self.random.randrange(len(self.clients))
        id = f"r{len(self.sent)}"
        seed = len(self.sent)
        fields = {
            "prompt_ids": [self.random.randrange(400)],
            "seed": seed,
            "max_tokens": self.random.randrange(1, 30),
            "stop": self.random.choice(STOPS),
            "stream": self.random.random() < 0.8,
        }
        self.sent[number, id] = fields
        self.log[number, id] = []
        self.outputs[seed] = []
        self.clients[number].send("generate", id=id, **fields)

    def cancel(self) -> None:
        number, id = self.random.choice(list(self.sent))
        self.clients[number].send("cancel", id=id)

    def read_engine(self, wait_ms: int = 0) -> bool:
        socket = self.front.engine.socket
        if not socket.poll(wait_ms):
            return False
        message, _ = wire.decode(socket.recv(), 0)
        if isinstance(message, wire.Open):
            self.running[message.request] = (message.max_tokens, message.sampling[4])
            assert len(self.running) <= self.credits
        else:
            assert isinstance(message, wire.Close)
            self.closed.update(message.requests.tolist())
        return True

    def cycle(self) -> None:
        keys = [key for key in self.running if self.random.random() < 0.7]
        entries = []
        for key in keys:
            left, seed = self.running[key]
            if key in self.closed:
                entries.append(Entry(key, finish=Finish.ABORT))
                del self.running[key]
                continue
            ids = [self.random.randrange(1, 400) for _ in range(self.random.randrange(1, 6))]
            ids = ids[:left]
            self.outputs[seed] += ids
            finish = Finish.LENGTH if len(ids) == left else Finish.NONE
            entries.append(Entry(key, ids, finish=finish))
            if finish:
                del self.running[key]
            else:
                self.running[key] = (left - len(ids), seed)
        if entries:
            self.front.engine.emit(*entries)

    def read_client(self, number: int, wait_ms: int = 0) -> bool:
        client: FakeClient = self.clients[number]
        if not client.socket.poll(wait_ms):
            return False
        message = msgpack.unpackb(client.socket.recv(zmq.NOBLOCK))
        if message["type"] != "alive":
            self.log[number, message["id"]].append(message)
        return True

    @property
    def unfinished(self) -> list[tuple[int, str]]:
        return [key for key, log in self.log.items() if not log or log[-1]["type"] != "done"]

    def check(self, key: tuple[int, str]) -> None:
        fields, log = self.sent[key], self.log[key]
        assert log[0]["type"] == "accepted"
        assert [item["type"] for item in log[1:-1]] == ["tokens"] * (len(log) - 2)
        done = log[-1]
        offset, text = 0, ""
        for seq, item in enumerate(log[1:-1]):
            assert (item["seq"], item["offset"]) == (seq, offset)
            offset += len(item["ids"])
            text += item["text"]
        ids = [id for item in log[1:-1] for id in item["ids"]]
        if not fields["stream"]:
            assert len(log) == 2
            ids, text = done["ids"], done["text"]
        assert ids == self.outputs[fields["seed"]][: len(ids)]
        whole = self.codec.decode(ids)
        found = [whole.find(stop) for stop in fields["stop"] if stop in whole]
        assert text == whole[: min(found)] if found else text == whole
        assert done["usage"]["completion_tokens"] == len(ids)
        if done["finish"] == "stop":
            assert done["stop_reason"] in fields["stop"]
            assert text + done["stop_reason"] == whole[: len(text) + len(done["stop_reason"])]
        elif done["finish"] == "length":
            assert len(ids) == fields["max_tokens"]


@pytest.mark.parametrize("seed", range(4))
def test_requests_do_not_mix(
    make_front: Callable[..., FrontUnderTest], codec: TextCodec, seed: int
) -> None:
    credits = 3
    run = RandomRun(make_front(credits=credits).start(), codec, seed, credits)
    for _ in range(600):
        action = run.random.random()
        if action < 0.15:
            run.start()
        elif action < 0.18 and run.sent:
            run.cancel()
        elif action < 0.6:
            while run.read_engine():
                pass
            run.cycle()
        elif action < 0.9:
            run.read_client(run.random.randrange(len(run.clients)), wait_ms=1)
    for _ in range(20_000):
        if not run.unfinished and not run.running:
            break
        while run.read_engine():
            pass
        run.cycle()
        for number in range(len(run.clients)):
            while run.read_client(number):
                pass
        run.read_engine(wait_ms=1)
    assert run.unfinished == []
    for key in run.sent:
        run.check(key)
    finishes = {log[-1]["finish"] for log in run.log.values()}
    assert finishes == {"stop", "length", "abort"}
    client = run.clients[0]
    client.send("info")
    question = run.front.engine.receive(wire.InfoRequest)
    run.front.engine.send(wire.InfoReply(number=question.number, info={}))
    counters = client.expect("info")["counters"]
    assert counters["open_requests"] == counters["waiting_requests"] == 0
    assert counters["closing_requests"] == 0
    assert counters["free_credits"] == credits
    assert sum(counters["finished"].values()) == len(run.sent)
