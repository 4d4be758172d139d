"""The listening socket, and what the gateway needs installed. Nothing here imports any of that."""

from __future__ import annotations

import socket

from pdv_mp.config import ConfigError

NEEDED = ("fastapi", "uvicorn", "jinja2")
"""Packages of the extra ``http``."""

LISTENER_FD = "PDV_HTTP_FD"
"""Environment variable with the number of the listening socket's descriptor."""

BACKLOG = 1024


def listen(address: str, port: int) -> socket.socket:
    """A listening socket on an IP address. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"HTTP port {port} cannot be used on {address}: {reason}; choose another, or 0 for a "
            "free one"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a listening socket is reached."""
    address, port = listener.getsockname()[:2]
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}"
