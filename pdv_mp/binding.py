"""Where sockets are bound: the address for clients, and who could reach it; unix sockets."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

import zmq

from pdv_mp.config import ConfigError, ServerOptions

LOOPBACK = "127.0.0.1"

CLIENT_SOCKET = "client"
"""File name of the clients' socket in the run directory."""


def resolve_host(host: str, flag: str = "--host") -> str:
    """The IP address for ``--host``: an address (IPv6 with or without brackets), a name, or ``*``
    for all IPv4 addresses of the machine. A name's first IPv4 address goes before its IPv6 ones.
    ``flag`` is the option that an error names.

    Raises ConfigError for what is neither an address nor a name that can be resolved.
    """
    if host == "localhost":
        return LOOPBACK
    if host == "*":
        return str(ipaddress.IPv4Address(0))
    text = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return _resolve_name(host, flag)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _resolve_name(name: str, flag: str) -> str:
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM) if name else []
    except (OSError, ValueError):  # a text may have characters or a length that no name has
        found = []
    if not found:
        raise ConfigError(
            f"{flag} {name!r} is neither an IP address nor a name that can be resolved; "
            f"use {LOOPBACK}"
        )
    *_, address = min(found, key=lambda item: item[0] != socket.AF_INET)
    return str(address[0])


def is_loopback(address: str) -> bool:
    """Whether only programs on this machine can reach an IP address."""
    return ipaddress.ip_address(address).is_loopback


def check_exposure(server: ServerOptions) -> None:
    """Raises ConfigError if other machines could connect and need no token, unless that is
    wanted. The metrics are read without one."""
    address = resolve_host(server.host)
    if server.token_file is None and not server.insecure and not is_loopback(address):
        raise ConfigError(
            f"--host {server.host} lets other machines connect: give a --token-file, whose token "
            "clients must then send, or --insecure to serve everyone"
        )
    if server.metrics_port is None or server.insecure:
        return
    if not is_loopback(resolve_host(server.metrics_host, "--metrics-host")):
        raise ConfigError(
            f"--metrics-host {server.metrics_host} lets other machines read the metrics: give "
            "--insecure if they may"
        )


def tcp_endpoint(address: str, port: int) -> str:
    """The endpoint to bind for an IP address; port 0 is any free one."""
    host = f"[{address}]" if ":" in address else address
    return f"tcp://{host}:{port or '*'}"


def bind_tcp(router: zmq.Socket[Any], address: str, port: int) -> str:
    """Bind a socket to an IP address; returns the endpoint. Raises zmq.ZMQError."""
    router.setsockopt(zmq.IPV6, ":" in address)
    router.bind(tcp_endpoint(address, port))
    return router.getsockopt_string(zmq.LAST_ENDPOINT)


def bind_ipc(bound: zmq.Socket[Any], path: Path) -> str:
    """Bind a unix socket that only this user can connect to (mode 0600); returns the endpoint."""
    endpoint = f"ipc://{path}"
    previous = os.umask(0o177)
    try:
        bound.bind(endpoint)
    finally:
        os.umask(previous)
    return endpoint
