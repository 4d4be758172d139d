"""HTTP as bytes, for what no client library would send."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit


def connect(url: str, seconds: float = 60.0, receive_buffer: int = 0) -> socket.socket:
    """A connection to a gateway, perhaps with a receive buffer of so many bytes."""
    parts = urlsplit(url)
    connection = socket.socket()
    connection.settimeout(seconds)
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect((str(parts.hostname), int(parts.port or 80)))
    return connection


def exchange(url: str, data: bytes) -> bytes:
    """Everything that is answered to some bytes, until the gateway closes."""
    with connect(url) as connection:
        connection.sendall(data)
        return rest(connection)


def rest(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    found = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return found
        if not part:
            return found
        found += part


def request(path: str, body: bytes = b"", *headers: str, method: str = "") -> bytes:
    """A request that closes its connection."""
    lines = [
        f"{method or ('POST' if body else 'GET')} {path} HTTP/1.1",
        "Host: gateway",
        "Connection: close",
        *(["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []),
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def status(answer: bytes) -> int:
    """The status of an answer."""
    return int(answer.split(b" ", 2)[1])
