"""Connections that speak another protocol, half of ours, or nothing at all, to a real server."""

from __future__ import annotations

import resource
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import msgpack
import psutil
import pytest
import zmq
from hostile import zmtp
from hostile.attacked import Attacked

PING = msgpack.packb({"v": 1, "type": "ping", "n": 1})
SPARE_DESCRIPTORS = 100
MOST_CONNECTIONS = 1000


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


GREETING = zmtp.GREETING
ENDED: dict[str, bytes] = {
    "http": b"GET /health HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl\r\n\r\n" * 20,
    "tls": client_hello(),
    "another mechanism": GREETING[:12] + b"CURVE".ljust(20, b"\0") + GREETING[32:],
    "a command that is none": GREETING + zmtp.command(b"NONSENSE"),
    "a message before the handshake": GREETING + zmtp.frame(PING),
    "a false length in the handshake": GREETING + b"\x06" + struct.pack(">Q", 2**63),
    "a READY that is cut": GREETING + b"\x04\x06\x05READY"[:-1] + b"Y\x0bSock",
}


@pytest.mark.parametrize("data", ENDED.values(), ids=ENDED.keys())
def test_another_protocol(attacked: Attacked, data: bytes) -> None:
    with zmtp.connect(attacked.server.endpoint) as plain:
        with suppress(OSError):  # the server may have closed it before
            plain.sendall(data)
            plain.shutdown(socket.SHUT_WR)
        assert zmtp.closed(plain)


SILENT: dict[str, bytes] = {
    "nothing": b"",
    "half a signature": GREETING[:5],
    "half a greeting": GREETING[:20],
    "a greeting": GREETING,
    "half a READY": GREETING + b"\x04\x26\x05READY",
}


def test_half_a_handshake_and_then_silence(attacked: Attacked) -> None:
    with ExitStack() as stack:
        for endpoint in (attacked.server.endpoint, attacked.server.ipc):
            for data in SILENT.values():
                plain = stack.enter_context(zmtp.connect(endpoint))
                plain.sendall(data)
                attacked.check_served()
                attacked.check_served(attacked.client(endpoint))


FRAMES: dict[str, bytes] = {
    "longer than is allowed": struct.pack(">BQ", 2, 2**23 + 1),
    "of 2^63 bytes": struct.pack(">BQ", 2, 2**63),
    "of 2^64 - 1 bytes": struct.pack(">BQ", 2, 2**64 - 1),
}


@pytest.mark.parametrize("data", FRAMES.values(), ids=FRAMES.keys())
def test_a_frame_that_ends_the_connection(attacked: Attacked, data: bytes) -> None:
    with zmtp.handshake(attacked.server.endpoint) as plain:
        plain.sendall(zmtp.frame(PING))
        assert msgpack.unpackb(zmtp.receive(plain))["type"] == "pong"
        plain.sendall(data)
        assert zmtp.closed(plain)


def test_a_message_that_is_never_finished(attacked: Attacked) -> None:
    with zmtp.handshake(attacked.server.endpoint) as plain:
        plain.sendall(zmtp.frame(bytes(1000), more=True) * 100 + zmtp.frame(bytes(1000))[:500])
        attacked.check_served()


def test_frames_in_single_bytes(attacked: Attacked) -> None:
    with zmtp.handshake(attacked.server.endpoint) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in zmtp.frame(PING):
            plain.sendall(bytes((byte,)))
        assert msgpack.unpackb(zmtp.receive(plain))["n"] == 1


def test_another_socket_type(attacked: Attacked) -> None:
    for kind in (zmq.REQ, zmq.PUSH, zmq.SUB, zmq.PAIR):
        other = attacked.context.socket(kind)
        other.setsockopt(zmq.LINGER, 0)
        other.connect(attacked.server.endpoint)
        if kind == zmq.REQ:
            other.send(PING)  # the delimiter makes it two frames, so it is answered by an error
            # that a REQ socket cannot receive
        attacked.check_served()
        other.close()


def test_two_clients_of_one_identity(attacked: Attacked) -> None:
    with (
        zmtp.handshake(attacked.server.endpoint, b"same") as first,
        zmtp.handshake(attacked.server.endpoint, b"same") as second,
    ):
        first.sendall(zmtp.frame(PING))
        assert msgpack.unpackb(zmtp.receive(first))["n"] == 1
        second.sendall(zmtp.frame(PING))
        attacked.check_served()
        first.sendall(zmtp.frame(PING))
        assert msgpack.unpackb(zmtp.receive(first))["n"] == 1
        second.settimeout(0.2)
        with pytest.raises(TimeoutError):
            second.recv(1)


@pytest.fixture
def descriptors() -> Iterator[int]:
    """How many connections this process may hold, at most MOST_CONNECTIONS."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + SPARE_DESCRIPTORS
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield (
        MOST_CONNECTIONS
        if now == resource.RLIM_INFINITY
        else min(MOST_CONNECTIONS, now - SPARE_DESCRIPTORS)
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_connections_that_say_nothing(attacked: Attacked, descriptors: int) -> None:
    front = psutil.Process(attacked.pids["front"])
    before = front.num_fds()
    with ExitStack() as stack:
        for number in range(descriptors):
            plain = stack.enter_context(zmtp.connect(attacked.server.endpoint))
            plain.sendall(GREETING[: number % len(GREETING)])
            if number % 100 == 0:
                attacked.check_served()
        newcomer = attacked.client()
        attacked.check_served(newcomer)
        assert front.num_fds() >= before + descriptors
    attacked.check_served(newcomer)
    attacked.leave()
    for _ in range(1000):
        attacked.check_served(count=1)
        if front.num_fds() <= before:
            return
    pytest.fail(f"{front.num_fds() - before} descriptors were not closed")


def test_more_connections_than_descriptors(attacked: Attacked) -> None:
    front = attacked.pids["front"]
    limits = resource.prlimit(front, resource.RLIMIT_NOFILE)
    known = attacked.client()
    attacked.check_served(known)
    room = psutil.Process(front).num_fds() + 20
    resource.prlimit(front, resource.RLIMIT_NOFILE, (room, limits[1]))
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(zmtp.connect(attacked.server.endpoint))
        for _ in range(5):
            attacked.check_served()
            attacked.check_served(known)
        newcomer = attacked.client()
    attacked.check_served(newcomer)  # as soon as others have left
    resource.prlimit(front, resource.RLIMIT_NOFILE, limits)


def test_the_server_takes_as_many_descriptors_as_it_may(attacked: Attacked) -> None:
    soft, hard = resource.prlimit(attacked.pids["front"], resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or soft >= min(hard, 65_536)
