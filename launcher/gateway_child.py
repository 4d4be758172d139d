"""The HTTP gateway as a child of the launcher: its options checked, its socket bound.

The launcher binds, so that a port that is taken is answered at once, and so that the gateway's
successor serves the same one: who connects between the two waits and is not refused.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import socket

from gateway.keys import api_key_path, read_api_key
from gateway.listening import LISTENER_FD, NEEDED, listen, url_of
from launcher.child import ChildSpec
from pdv_mp.binding import is_loopback, resolve_host
from pdv_mp.config import ConfigError, HttpOptions

__all__ = ["checked_http", "exposed", "gateway_spec", "open_listener", "url_of"]


def checked_http(http: HttpOptions, *, insecure: bool) -> HttpOptions:
    """The same options with an IP address as ``http_host`` and an absolute ``api_key_file``.

    Raises ConfigError if a package is missing, the key file cannot be used, or other machines could
    connect and need no key, unless that is wanted.
    """
    if http.http_port is None:
        return http
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--http-port needs {', '.join(missing)}, not installed here: "
            "pip install 'pdv-mp[http]'"
        )
    address = resolve_host(http.http_host)
    if http.api_key_file is None and not insecure and not is_loopback(address):
        raise ConfigError(
            f"--http-host {http.http_host} lets other machines connect: give an --api-key-file, "
            "whose key clients must then send, or --insecure to serve everyone"
        )
    file = None if http.api_key_file is None else api_key_path(http.api_key_file)
    if file is not None:
        read_api_key(str(file))
    return dataclasses.replace(
        http, http_host=address, api_key_file=None if file is None else str(file)
    )


def exposed(http: HttpOptions) -> bool:
    """Whether checked options let other machines connect without a key."""
    return (
        http.http_port is not None and http.api_key_file is None and not is_loopback(http.http_host)
    )


def open_listener(http: HttpOptions) -> socket.socket | None:
    """The gateway's listening socket, None without one. Raises ConfigError."""
    return None if http.http_port is None else listen(http.http_host, http.http_port)


def gateway_spec(spec: ChildSpec, listener: socket.socket) -> ChildSpec:
    """How to start the gateway, made from how a process of the engine is started."""
    command = [part if part != "pdv_mp.process" else "gateway.process" for part in spec.command]
    environment = {**spec.environment, LISTENER_FD: str(listener.fileno())}
    return ChildSpec(spec.name, command, environment, (listener.fileno(),))
