"""Messages that never end, to a real server: libzmq keeps every frame of them."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import msgpack
import pytest
from hostile import zmtp
from hostile.attacked import Attacked
from server_process import ServerProcess

LIMIT = 4 * 2**20
"""The server's max_message_bytes."""

ROUNDS = 12
ROUND_BYTES = 50 * 2**20
MOST_GROWTH = 300 * 2**20
"""What one round may take, not all: small frames need several times their size."""


@pytest.fixture(scope="module")
def server(tiny_server: ServerProcess) -> Iterator[Attacked]:
    attacked = Attacked(tiny_server)
    yield attacked
    attacked.close()


def packed(kind: str, **fields: object) -> bytes:
    data: bytes = msgpack.packb({"v": 1, "type": kind, **fields})
    return data


def connection_number(plain: socket.socket) -> int:
    plain.sendall(zmtp.frame(packed("ping", n=1)))
    number: int = msgpack.unpackb(zmtp.receive(plain))["connection"]
    return number


SHORT = b"\x01\x00"
PARTS = {"large": zmtp.frame(bytes(10**6), more=True), "small": SHORT + b"\x01\x64" + bytes(100)}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
def test_a_message_without_an_end_ends_its_connection(server: Attacked, part: bytes) -> None:
    """The good client is served all the time, and others on connections that came later."""
    before = server.growth()["front"]
    chunk = part * max(1, 10**6 // len(part))
    for number in range(ROUNDS):
        with zmtp.handshake(server.server.endpoint) as plain:
            if number % 2:  # one that has said something sensible before
                connection_number(plain)
            sent = 0
            try:
                while sent < ROUND_BYTES:
                    plain.sendall(chunk)
                    sent += len(chunk)
            except ConnectionError:
                pass
            assert zmtp.closed(plain)
        server.check_served()
        server.check_served(server.client())
        server.leave()
    assert server.growth()["front"] - before < MOST_GROWTH
    server.check()


def test_the_largest_legal_frame_may_take_its_time(server: Attacked) -> None:
    frame = zmtp.frame(bytes(2 * LIMIT))
    with zmtp.handshake(server.server.endpoint) as plain:
        number = connection_number(plain)
        for start in range(0, len(frame), 2**20):
            plain.sendall(frame[start : start + 2**20])
            server.check_served(count=200)
        assert msgpack.unpackb(zmtp.receive(plain))["code"] == "too_large"
        assert connection_number(plain) == number


def test_many_large_messages_at_once_are_all_answered(server: Attacked) -> None:
    """Each takes the server a while, and libzmq has read many more than it allows of one."""
    count = 20
    large = zmtp.frame(packed("generate", id="a", prompt_ids=[1] * (LIMIT - 100)))
    with zmtp.handshake(server.server.endpoint) as plain:
        number = connection_number(plain)
        sender = threading.Thread(target=lambda: [plain.sendall(large) for _ in range(count)])
        sender.start()
        try:
            for _ in range(count):
                assert msgpack.unpackb(zmtp.receive(plain))["code"] == "too_large"
        finally:
            sender.join()
        assert connection_number(plain) == number


def test_heartbeats_are_no_message(server: Attacked) -> None:
    ping = b"\x04\x07\x04PING" + struct.pack(">H", 0)
    with zmtp.handshake(server.server.endpoint) as plain:
        number = connection_number(plain)
        plain.sendall(ping * 1000)
        for _ in range(1000):
            assert zmtp.receive(plain).startswith(b"\x04PONG")
        assert connection_number(plain) == number
