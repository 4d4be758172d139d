"""What both clients share around their core: defaults, parameters by name, the socket's options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import zmq

from pdv_mp.sampling_params import SamplingParams

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5555"
DEFAULT_TIMEOUT = 30.0
DEFAULT_CONNECT_TIMEOUT = 5.0
DEFAULT_QUEUE_TIMEOUT = 60.0

Prompt = str | Sequence[int]
OnMessage = Callable[[dict[str, Any]], None]


def parameters(params: SamplingParams | None, values: dict[str, Any]) -> SamplingParams:
    """A request's parameters, given as one object or by name. Raises TypeError for both at once."""
    if params is not None and values:
        raise TypeError(f"give either params or {', '.join(values)}, not both")
    return params if params is not None else SamplingParams(**values)


def connect(socket: zmq.Socket[Any], endpoint: str) -> None:
    """Set a DEALER's options and connect it. Raises ValueError for an endpoint of another form."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    # Only for an address: with it libzmq would look for a name's IPv6 address alone.
    socket.setsockopt(zmq.IPV6, endpoint.startswith("tcp://["))
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise _bad_endpoint(endpoint, zmq.strerror(error.errno or 0).lower()) from error
    if not endpoint.startswith(("tcp://", "ipc://")):
        raise _bad_endpoint(endpoint, "servers are not found there")
    port = endpoint.rpartition(":")[2]  # libzmq takes a number without such a port
    if endpoint.startswith("tcp://") and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise _bad_endpoint(endpoint, f"{port!r} is not a port")


def _bad_endpoint(endpoint: str, reason: str) -> ValueError:
    return ValueError(
        f"endpoint {endpoint!r} cannot be connected to: {reason}; "
        "it has the form tcp://HOST:PORT or ipc://PATH"
    )
