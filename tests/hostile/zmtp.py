"""ZMTP 3.0 by hand, for what no libzmq would send (https://rfc.zeromq.org/spec/23/).

Tests in other folders import it as ``hostile.zmtp``.
"""

from __future__ import annotations

import socket
import struct

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
SECONDS = 20.0


def connect(endpoint: str) -> socket.socket:
    """A plain connection to a tcp or ipc endpoint."""
    if endpoint.startswith("ipc://"):
        plain = socket.socket(socket.AF_UNIX)
        plain.connect(endpoint.removeprefix("ipc://"))
    else:
        host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
        plain = socket.create_connection((host, int(port)))
    plain.settimeout(SECONDS)
    return plain


def read(plain: socket.socket, size: int) -> bytes:
    """Exactly so many bytes. Raises EOFError where the other side ends before."""
    data = b""
    while len(data) < size:
        part = plain.recv(size - len(data))
        if not part:
            raise EOFError(f"the connection was closed after {len(data)} of {size} bytes")
        data += part
    return data


def closed(plain: socket.socket) -> bool:
    """Whether the other side ends the connection; waits for it."""
    try:
        while plain.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def command(name: bytes, **properties: bytes) -> bytes:
    """A command frame, such as READY."""
    body = bytes((len(name),)) + name
    for key, value in properties.items():
        body += bytes((len(key),)) + key.replace("_", "-").encode()
        body += struct.pack(">I", len(value)) + value
    return bytes((4, len(body))) + body


def frame(data: bytes, more: bool = False) -> bytes:
    """A frame of a message."""
    return struct.pack(">BQ", 2 | more, len(data)) + data


def handshake(endpoint: str, identity: bytes = b"", kind: bytes = b"DEALER") -> socket.socket:
    """A connection that a ROUTER takes for a DEALER of this identity."""
    plain = connect(endpoint)
    plain.sendall(GREETING)
    read(plain, len(GREETING))
    plain.sendall(command(b"READY", Socket_Type=kind, Identity=identity))
    read(plain, read(plain, 2)[1])
    return plain


def receive(plain: socket.socket) -> bytes:
    """The next message, of one frame."""
    flags = read(plain, 1)[0]
    size = struct.unpack(">Q", read(plain, 8))[0] if flags & 2 else read(plain, 1)[0]
    return read(plain, size)
