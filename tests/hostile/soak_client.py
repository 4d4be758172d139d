"""Many raw clients in one thread that do all that clients do, well and badly, and count frames.

Nothing here trusts our client library: every rule of docs/protocol.md about the order of messages
is checked on what the sockets receive. Tests in other folders import it as ``hostile.soak_client``.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import zmq

MOST_OPEN = 6
"""Open requests of one connection."""

REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"prompt_ids": []}, "bad_request"),
    ({"prompt_ids": [10**6]}, "bad_request"),
    ({"temperature": -1}, "bad_request"),
    ({"stop": "x"}, "bad_request"),
    ({"logprobs": 99}, "bad_request"),
    ({"max_tokens": 10**6}, "too_large"),
    ({"prompt_ids": [1] * 5000}, "too_large"),
    ({"prompt_ids": [1] * 300, "max_tokens": 300}, "context_length_exceeded"),
)


@dataclass(slots=True)
class Sent:
    """What was sent under one id, and what has come back."""

    stream: bool
    max_tokens: int
    error: str | None
    sends: int = 1
    ends: int = 0
    opened: bool = False
    messages: int = 0
    ids: int = 0
    cancel_at: int | None = None


class Connection:
    """One DEALER and the requests that were sent over it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.sent: dict[str, Sent] = {}
        self.unfinished: set[str] = set()
        self.paused_until = 0.0

    def send(self, type: str, **fields: Any) -> None:
        self.socket.send(msgpack.packb({"v": 1, "type": type, **fields}))


class Soak:
    """Sends so many requests; :meth:`run` returns when all have ended or lost their client.

    ``finished`` counts last messages by their kind and ``lost`` the requests whose connection was
    closed before; ``queue_full`` those that were refused so and are in no other count.
    ``on_progress`` is called with the number of requests that are over.
    """

    def __init__(
        self,
        endpoints: list[str],
        requests: int,
        seed: int,
        connections: int,
        vocabulary: int,
        on_progress: Callable[[int], None],
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._endpoints = endpoints
        self._left = requests
        self._random = random.Random(seed)
        self._vocabulary = vocabulary
        self._on_progress = on_progress
        self._poller = zmq.Poller()
        self._of_socket: dict[zmq.Socket[bytes], Connection] = {}
        self._next_id = 0
        self._prefixes = [self._ids(40) for _ in range(5)]
        self.finished: Counter[str] = Counter()
        self.lost = 0
        self.queue_full = 0
        for _ in range(connections):
            self._connect()

    def _connect(self) -> None:
        connection = Connection(self._context, self._random.choice(self._endpoints))
        self._of_socket[connection.socket] = connection
        self._poller.register(connection.socket, zmq.POLLIN)

    def _disconnect(self, connection: Connection) -> None:
        unfinished = [connection.sent[id] for id in connection.unfinished]
        self.lost += sum(sent.sends - sent.ends for sent in unfinished)
        self._poller.unregister(connection.socket)
        del self._of_socket[connection.socket]
        connection.socket.close(linger=0)

    def run(self) -> None:
        """Send everything and read everything."""
        while self._left or any(item.unfinished for item in self._of_socket.values()):
            for connection in list(self._of_socket.values()):
                while self._may_send(connection):
                    self._start(connection)
                    if self._chance(0.01):
                        self._disconnect(connection)
                        self._connect()
                        break
            ready = self._poller.poll(60_000)
            assert ready, f"{sum(self.finished.values())} requests ended, and then silence"
            for socket, _ in ready:
                if socket in self._of_socket:
                    self._read(self._of_socket[socket])
            self._on_progress(sum(self.finished.values()) + self.lost)
        self._check_silence()

    def _may_send(self, connection: Connection) -> bool:
        return (
            self._left > 0
            and len(connection.unfinished) < MOST_OPEN
            and time.monotonic() >= connection.paused_until
        )

    def _check_silence(self) -> None:
        """Messages of one connection keep their order, so after the answer to a ping sent now
        nothing can follow that belongs to a request."""
        for connection in self._of_socket.values():
            connection.send("ping", n=-1)
            while self._receive(connection, 20_000)["type"] != "pong":
                pass

    def close(self) -> None:
        """Close all sockets."""
        for connection in list(self._of_socket.values()):
            self._disconnect(connection)
        self._context.term()

    # ------------------------------------------------------------------ what is sent

    def _ids(self, count: int) -> list[int]:
        return [self._random.randrange(1, self._vocabulary) for _ in range(count)]

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _start(self, connection: Connection) -> None:
        self._next_id += 1
        id = str(self._next_id)
        fields = self._parameters()
        sent = Sent(fields.get("stream", True), fields["max_tokens"], None)
        if self._chance(0.06):
            fault, sent.error = self._random.choice(REFUSED)
            if "prompt_ids" in fault:
                fields.pop("prompt", None)
            fields.update(fault)
        connection.send("generate", id=id, **fields)
        connection.sent[id] = sent
        connection.unfinished.add(id)
        self._left -= 1
        if self._chance(0.08):
            sent.cancel_at = self._random.randrange(8)
            if sent.cancel_at == 0:
                connection.send("cancel", id=id)
        if self._left and sent.error is None and self._chance(0.03):
            connection.send("generate", id=id, **fields)
            sent.sends += 1
            self._left -= 1

    def _parameters(self) -> dict[str, Any]:
        chance, pick = self._chance, self._random.choice
        prompt = pick(self._prefixes) if chance(0.4) else []
        fields: dict[str, Any] = {
            "prompt_ids": prompt + self._ids(self._random.randrange(1, 20)),
            "max_tokens": self._random.randrange(1, 17),
            "ignore_eos": chance(0.5),
        }
        if chance(0.1):
            del fields["prompt_ids"]
            fields["prompt"] = "for é in range(" + "x" * self._random.randrange(30)
        if chance(0.6):
            fields["temperature"] = pick((0.3, 0.8, 1.0, 2.0))
            fields.update(pick(({}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05})))
        if chance(0.15):
            fields["stop"] = [chr(self._random.randrange(32, 127)), "é", "def"]
        if chance(0.1):
            fields["stop_token_ids"] = self._ids(5)
        if chance(0.1):
            fields["logprobs"] = self._random.randrange(6)
        if chance(0.03):
            fields["prompt_logprobs"] = self._random.randrange(3)
        for name, probability in (("stream", 0.3), ("speculate", 0.2)):
            if chance(probability):
                fields[name] = False
        if chance(0.1):
            fields["timeline"] = True
        return fields

    # ------------------------------------------------------------------ what is received

    def _read(self, connection: Connection) -> None:
        for _ in range(20):
            if not connection.socket.poll(0):
                return
            self._receive(connection, 0)

    def _receive(self, connection: Connection, wait_ms: int) -> dict[str, Any]:
        assert connection.socket.poll(wait_ms), "no answer came"
        message: dict[str, Any] = msgpack.unpackb(connection.socket.recv())
        if message["type"] not in ("alive", "pong"):
            self._take(connection, message)
        return message

    def _take(self, connection: Connection, message: dict[str, Any]) -> None:
        kind, id = message["type"], message["id"]
        sent = connection.sent[id]
        assert sent.ends < sent.sends, f"after the end of {id}: {message}"
        if kind == "accepted":
            assert not sent.opened, id
            sent.opened, sent.messages, sent.ids = True, 0, 0
        elif kind == "tokens":
            assert sent.opened, id
            assert sent.stream, id
            assert (message["seq"], message["offset"]) == (sent.messages, sent.ids), message
            assert len(message["drafted"]) == len(message["ids"])
            sent.messages += 1
            sent.ids += len(message["ids"])
            if sent.cancel_at is not None and sent.messages >= sent.cancel_at > 0:
                connection.send("cancel", id=id)
                sent.cancel_at = None
        elif kind == "done":
            assert sent.opened, id
            sent.opened = False
            self._check_done(sent, message)
            self._ended(connection, id, message["finish"])
        else:
            assert kind == "error", message
            self._check_error(sent, message)
            if message["code"] == "queue_full":
                connection.paused_until = time.monotonic() + message["retry_after_ms"] / 1000
            self._ended(connection, id, message["code"])

    def _check_done(self, sent: Sent, message: dict[str, Any]) -> None:
        count = message["usage"]["completion_tokens"]
        assert count == (sent.ids if sent.stream else len(message["ids"])), message
        assert count <= sent.max_tokens
        if message["finish"] == "length":
            assert count == sent.max_tokens
        assert message["finish"] in ("stop", "length", "abort")
        assert sent.error is None, message

    def _check_error(self, sent: Sent, message: dict[str, Any]) -> None:
        code = message["code"]
        if code == "duplicate_id":
            assert sent.opened
            assert sent.sends == 2
        else:
            assert not sent.opened, message
            assert code in ("queue_full", sent.error), message

    def _ended(self, connection: Connection, id: str, how: str) -> None:
        if how == "queue_full":  # to be sent again, as another
            self.queue_full += 1
            self._left += 1
        else:
            self.finished[how] += 1
        sent = connection.sent[id]
        sent.ends += 1
        if sent.ends == sent.sends:
            connection.unfinished.discard(id)
