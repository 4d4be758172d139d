"""Workers that die under load: clients notice a pause and nothing else."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
import zmq
from server_process import ServerProcess
from tiny_model import VOCABULARY

Start = Callable[..., ServerProcess]
Message = dict[str, Any]

POISON_FOLDER = Path(__file__).with_name("poison")
POISONOUS = [13, 13, 13]


def poisoned(stage: str, how: str, nth: int = 1) -> dict[str, str]:
    """Environment of a server in which a prompt that begins with POISONOUS kills its worker."""
    path = os.pathsep.join((str(POISON_FOLDER), os.environ["PYTHONPATH"]))
    return {"POISON": f"{stage}:{how}:{nth}", "PYTHONPATH": path}


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
        assert last["usage"]["prompt_tokens"] == len(self.requests[id]["prompt_ids"])
        return ids, text, last["finish"], last["stop_reason"], [item["id"] for item in logprobs]


@contextmanager
def load(server: ServerProcess) -> Iterator[Load]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = Load(context, server.ipc)
    try:
        yield client
    finally:
        client.socket.close(linger=0)
        context.term()


def worker_pid(server: ServerProcess) -> int:
    """Process id of the present worker."""
    while True:
        for child in psutil.Process(server.pid).children():
            try:
                if "worker-0" in child.cmdline():
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


def check_nothing_leaks(client: Load, restarts: int) -> None:
    info = client.info()
    counters, pools = info["counters"], info["pools"]
    assert counters["restarts"] == restarts
    assert counters["open_requests"] == counters["waiting_requests"] == 0
    assert counters["closing_requests"] == 0
    assert counters["free_credits"] == pools["slots"]
    assert (pools["slots_in_use"], pools["blocks_in_use"]) == (0, 0)


def test_a_worker_killed_under_load_costs_time_and_nothing_else(start_server: Start) -> None:
    requests = random_requests(40, seed=3)
    server = start_server("--max-num-seqs", "8", "--check-invariants")
    wanted = outputs(server, requests)
    kills = 4
    with load(server) as client:
        for index, fields in enumerate(requests):
            client.generate(str(index), **fields)
        for _ in range(kills):
            enough = client.received + 60
            client.until(lambda enough=enough: client.received >= enough)
            os.kill(worker_pid(server), signal.SIGKILL)
        client.until_all_ended()
        got = [client.output(str(index)) for index in range(len(requests))]
        assert got == wanted
        check_nothing_leaks(client, kills)
        pids = client.info()["processes"]
        assert pids["worker-0"] == worker_pid(server) != server.pids["worker-0"]
    done = server.stop()
    assert done.code == 0
    said = [line for line in done.messages if "worker-0" in line]
    assert sum("was killed by SIGKILL; it is started again" in line for line in said) == kills
    assert sum("worker-0 serves again after" in line for line in said) == kills


def test_the_pause_is_a_state_of_the_timeline(start_server: Start) -> None:
    server = start_server()
    with load(server) as client:
        client.generate("a", prompt_ids=[20, 21], max_tokens=300, ignore_eos=True, timeline=True)
        client.until(lambda: client.received > 20)
        os.kill(worker_pid(server), signal.SIGKILL)
        client.until_all_ended()
        client.generate("b", prompt_ids=[20, 21], max_tokens=3, ignore_eos=True, timeline=True)
        client.until_all_ended()
        timeline = client.last["a"]["timeline"]
        states = timeline["states"]
        assert states["front.restart"]["n"] == 1
        assert states["front.restart"]["ns"] > 0.1e9
        assert sum(state["ns"] for state in states.values()) == timeline["e2e_ns"]
        assert "front.restart" not in client.last["b"]["timeline"]["states"]


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("verify", "raise"),
        pytest.param("prefill", "crash", marks=pytest.mark.slow),
        pytest.param("draft", "kill", marks=pytest.mark.slow),
    ],
)
def test_a_request_that_keeps_killing_the_worker_is_found(
    start_server: Start, stage: str, how: str
) -> None:
    requests = random_requests(24, seed=4)
    server = start_server("--max-num-seqs", "8", environment=poisoned(stage, how))
    wanted = outputs(server, requests)
    with load(server) as client:
        for index, fields in enumerate(requests):
            client.generate(str(index), **fields)
            if index == 5:
                client.generate("bad", prompt_ids=POISONOUS, max_tokens=60, ignore_eos=True)
        client.until_all_ended()
        assert [client.output(str(index)) for index in range(len(requests))] == wanted
        last = client.last["bad"]
        assert (last["type"], last["code"], last["retryable"]) == ("error", "internal", False)
        assert "worker-0 died 3 times" in last["message"]
        client.generate("after", prompt_ids=[20, 21], max_tokens=5, ignore_eos=True)
        client.until_all_ended()
        assert client.last["after"]["finish"] == "length"
        check_nothing_leaks(client, 3)
    assert server.stop().code == 0


@pytest.mark.slow
def test_a_request_that_kills_now_and_then_is_found_before_the_server_is_given_up(
    start_server: Start,
) -> None:
    environment = poisoned("verify", "kill", nth=8)
    server = start_server("--max-restarts", "5", environment=environment)
    with load(server) as client:
        client.generate("bad", prompt_ids=POISONOUS, max_tokens=400, ignore_eos=True)
        for index in range(4):
            prompt = [20 + index, 21]
            client.generate(str(index), prompt_ids=prompt, max_tokens=200, ignore_eos=True)
        client.until_all_ended()
        assert (client.last["bad"]["code"], client.last["bad"]["retryable"]) == ("internal", False)
        for index in range(4):
            assert client.last[str(index)]["finish"] == "length"
        check_nothing_leaks(client, 5)


def test_a_used_up_budget_is_the_end(start_server: Start) -> None:
    server = start_server("--max-restarts", "1")
    with load(server) as client:
        for index in range(8):
            client.generate(str(index), prompt_ids=[20, 21], max_tokens=500, ignore_eos=True)
        for _ in range(2):
            enough = client.received + 20
            client.until(lambda enough=enough: client.received >= enough)
            os.kill(worker_pid(server), signal.SIGKILL)
        killed = time.monotonic()
        client.until(lambda: len(client.last) == 8)
        assert time.monotonic() - killed < 1.0
        assert {last["code"] for last in client.last.values()} == {"lane_failed"}
        assert all(last["retryable"] for last in client.last.values())
    done = server.wait()
    assert done.code == 4
    # The second death may come before the new process is ready.
    ending = r"worker-0 was killed by SIGKILL( before it was ready)?, after 1 restarts within 600 s"
    assert any(re.match(ending, line) for line in done.messages)
