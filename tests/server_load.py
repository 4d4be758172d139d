"""A raw client that puts a server under load, checks each message, and keeps what it was sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
import psutil
import zmq
from server_process import ServerProcess
from tiny_model import VOCABULARY

Message = dict[str, Any]


class Load:
    """A raw client that keeps what each of its requests was sent, checked message by message."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(endpoint)
        self.requests: dict[str, Message] = {}
        self.tokens: dict[str, list[Message]] = {}
        self.last: dict[str, Message] = {}
        self.received = 0
        self.identities: set[tuple[str, int]] = set()

    def send(self, type: str, **fields: Any) -> None:
        self.socket.send(msgpack.packb({"v": 1, "type": type, **fields}))

    def generate(self, id: str, **fields: Any) -> None:
        self.requests[id] = fields
        self.tokens[id] = []
        self.send("generate", id=id, **fields)

    def take(self, seconds: float = 60.0) -> Message:
        """The next message, filed."""
        assert self.socket.poll(int(seconds * 1000)), "the server says nothing"
        message: Message = msgpack.unpackb(self.socket.recv())
        kind, id = message["type"], message.get("id")
        if kind in ("alive", "pong"):
            self.identities.add((message["instance"], message["connection"]))
        elif id is not None:
            assert id not in self.last, (message, self.last[id])
        if kind == "tokens":
            before = self.tokens[id]
            assert message["seq"] == len(before), message
            assert message["offset"] == sum(len(item["ids"]) for item in before), message
            assert len(message["drafted"]) == len(message["ids"])
            before.append(message)
            self.received += len(message["ids"])
        elif kind in ("done", "error"):
            self.last[id] = message
        return message

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self.requests) - len(self.last)

    def until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.take()

    def until_all_ended(self) -> None:
        self.until(lambda: len(self.last) == len(self.requests))
        self.send("ping", n=1)
        while self.take()["type"] != "pong":
            pass
        assert len(self.identities) == 1

    def info(self) -> Message:
        self.send("info")
        while (message := self.take())["type"] != "info":
            pass
        return message

    def output(self, id: str) -> tuple[Any, ...]:
        """All that a request's output is: ids, text, how it ended, log-probabilities."""
        last, tokens = self.last[id], self.tokens[id]
        if last["type"] == "error":
            return (last["code"],)
        if self.requests[id].get("stream", True):
            ids = [token for message in tokens for token in message["ids"]]
            text = "".join(message["text"] for message in tokens)
            logprobs = [item for message in tokens for item in message.get("logprobs", [])]
        else:
            ids, text, logprobs = last["ids"], last["text"], last.get("logprobs", [])
        assert last["usage"]["completion_tokens"] == len(ids)
        if (prompt_ids := self.requests[id].get("prompt_ids")) is not None:
            assert last["usage"]["prompt_tokens"] == len(prompt_ids)
        return ids, text, last["finish"], last["stop_reason"], [item["id"] for item in logprobs]


@contextmanager
def load(server: ServerProcess, endpoint: str | None = None) -> Iterator[Load]:
    """A client of the server, by default over its ipc endpoint."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = Load(context, endpoint or server.ipc)
    try:
        yield client
    finally:
        client.socket.close(linger=0)
        context.term()


def process_pid(server: ServerProcess, name: str) -> int:
    """Process id of the present process in that role."""
    while True:
        for child in psutil.Process(server.pid).children():
            try:
                if name in child.cmdline():
                    return child.pid
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.01)


def random_requests(count: int, seed: int) -> list[Message]:
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(count):
        fields: Message = {
            "prompt_ids": rng.integers(20, VOCABULARY, int(rng.integers(1, 80))).tolist(),
            "max_tokens": int(rng.integers(1, 120)),
            "temperature": float(rng.choice([0.0, 0.7, 1.0])),
            "top_p": float(rng.choice([1.0, 0.9])),
            "seed": int(rng.integers(0, 2**53)),
            "ignore_eos": True,
            "speculate": bool(rng.random() < 0.8),
            "stream": bool(rng.random() < 0.6),
        }
        if rng.random() < 0.3:
            fields["stop"] = [chr(rng.integers(97, 123)) + chr(rng.integers(97, 123))]
        if rng.random() < 0.3:
            fields["stop_token_ids"] = [int(rng.integers(1, VOCABULARY))]
        if rng.random() < 0.3:
            fields["logprobs"] = 2
        requests.append(fields)
    return requests


def outputs(server: ServerProcess, requests: list[Message]) -> list[tuple[Any, ...]]:
    """What an undisturbed server answers."""
    with load(server) as client:
        for index, fields in enumerate(requests):
            client.generate(str(index), **fields)
        client.until_all_ended()
        return [client.output(str(index)) for index in range(len(requests))]


class BusyLoad:
    """Keeps a client's requests coming: the same ones again and again, round after round."""

    def __init__(self, client: Load, requests: list[Message], least_open: int = 24) -> None:
        self.client = client
        self._requests = requests
        self._least_open = least_open
        self._rounds = 0

    def until_tokens(self, count: int) -> None:
        """Wait until so many more tokens have been streamed, with no lack of open requests, all of
        which the server has read: one that is told to stop refuses those that it has not."""
        client, enough = self.client, self.client.received + count
        while client.received < enough or client.num_open < self._least_open:
            if client.num_open < self._least_open:
                for index, fields in enumerate(self._requests):
                    client.generate(f"{self._rounds}.{index}", **fields)
                self._rounds += 1
            client.take()
        client.info()

    def check(self, wanted: list[tuple[Any, ...]]) -> None:
        """All requests of all rounds have ended with these outputs."""
        for number in range(self._rounds):
            for index, output in enumerate(wanted):
                id = f"{number}.{index}"
                assert self.client.output(id) == output, (id, self._requests[index])


def wait_all_there(client: Load, seconds: float = 60.0) -> None:
    """Waits until no process is being replaced any more."""
    deadline = time.monotonic() + seconds
    while away := client.info()["away"]:
        assert time.monotonic() < deadline, away
        time.sleep(0.02)


def wait_replaced(server: ServerProcess, client: Load, victims: Mapping[str, int]) -> None:
    """Waits until other processes than these serve in their roles, and nothing is away."""
    deadline = time.monotonic() + 60.0
    for name, pid in victims.items():
        while process_pid(server, name) == pid:
            assert time.monotonic() < deadline, name
            time.sleep(0.02)
    wait_all_there(client)


def check_nothing_leaks(client: Load, restarts: int | None = None) -> None:
    """Nothing is open, and every replica has all its slots, blocks and credits; ``restarts``: how
    many the front was told of."""
    info = client.info()
    counters = info["counters"]
    if restarts is not None:
        assert counters["restarts"] == restarts
    assert counters["open_requests"] == counters["waiting_requests"] == 0
    assert counters["closing_requests"] == 0
    assert counters["free_credits"] == info["pools"]["slots"]
    for replica in info["replicas"]:
        pools = replica["pools"]
        assert replica["serves"], replica
        assert (replica["open_requests"], replica["closing_requests"]) == (0, 0), replica
        assert replica["free_credits"] == pools["slots"], replica
        assert (pools["slots_in_use"], pools["blocks_in_use"]) == (0, 0), replica
        assert pools["blocks_free"] + pools["blocks_cached"] == pools["blocks"], replica
