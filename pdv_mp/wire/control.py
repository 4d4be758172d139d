"""Messages between the supervisor and the processes that it started.

One frame per message: a msgpack map of ``type`` and the fields of the dataclass of that name. They
travel on a socket of their own, so that a shutdown never queues behind work.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, get_type_hints

import msgpack


class ControlError(ValueError):
    """A control frame is damaged or of another version; the message says how."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Child: I am process ``pid`` in the role ``name``. The first message of every child."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Child: still starting; ``text`` says with what. Renews the start-up time-out."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Child: started. ``facts``: what it decided by itself (the front: ``endpoint``, ``ipc``)."""

    name: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """Child: cannot start, for the reason in ``message``. Answered by :class:`Received`."""

    name: str
    message: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Drained:
    """Front: no request is open any more, after Drain, Abort or Lost."""


@dataclass(frozen=True, slots=True)
class Bye:
    """Child: the last message before it exits. Answered by :class:`Received`."""

    name: str


@dataclass(frozen=True, slots=True)
class Pong:
    """Child: the answer to :class:`Ping`."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Supervisor to any child that is ready: answer with :class:`Pong` when you next come round.

    One that does not answer for ``--lane-timeout`` seconds is killed.
    """


@dataclass(frozen=True, slots=True)
class Drain:
    """Supervisor to front: refuse new requests, finish the open ones, then send Drained."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Supervisor to front: end every open request now, then send Drained."""


@dataclass(frozen=True, slots=True)
class Restarting:
    """Supervisor: process ``name`` is gone and comes back as ``generation``; keep what it had.

    The front is told of each, and of a worker with a scheduler also when that is killed with the
    pools process; of a worker without one, that with the scheduler of its replica is told as well.
    ``restarts_left``: how many more such deaths the server will outlive. ``cause``: the process
    whose death took this one along, empty for its own death.
    """

    name: str
    generation: int
    restarts_left: int
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """Supervisor to front: process ``name`` died and does not come back; answer every open request
    with ``lane_failed``, then send Drained."""

    name: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Supervisor to any child: leave your loop and exit."""


@dataclass(frozen=True, slots=True)
class Received:
    """Supervisor to a child: your Bye or Failed has arrived, the socket may be closed.

    libzmq may lose what is still queued when an ipc socket is closed, so the last message of a
    child is acknowledged.
    """


ChildMessage = Hello | Progress | Ready | Failed | Drained | Pong | Bye
SupervisorMessage = Ping | Drain | Abort | Restarting | Lost | Stop | Received
ControlMessage = ChildMessage | SupervisorMessage

_TYPES: dict[str, type[Any]] = {
    message.__name__.lower(): message
    for message in (
        Hello,
        Progress,
        Ready,
        Failed,
        Drained,
        Pong,
        Bye,
        Ping,
        Drain,
        Abort,
        Restarting,
        Lost,
        Stop,
        Received,
    )
}
_FIELDS: dict[str, dict[str, type[Any]]] = {
    name: {
        field: dict if re.match(r"dict\b", str(hint)) else hint
        for field, hint in get_type_hints(message).items()
    }
    for name, message in _TYPES.items()
}


def encode_control(message: ControlMessage) -> bytes:
    """The frame of a message."""
    fields = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    packed: bytes = msgpack.packb({"type": type(message).__name__.lower(), **fields})
    return packed


def decode_control(frame: bytes) -> ControlMessage:
    """The message of a frame. Raises ControlError for anything that is not one, whole."""
    try:
        values = msgpack.unpackb(frame)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise ControlError(f"a control frame is not msgpack: {error}") from error
    if not isinstance(values, dict):
        raise ControlError("a control frame is not a map")
    kind = values.pop("type", None)
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ControlError(f"unknown type of control message {kind!r}")
    wanted = _FIELDS[kind]
    if set(values) != set(wanted):
        raise ControlError(
            f"a {kind} message has the fields {sorted(map(str, values))}, not {sorted(wanted)}"
        )
    for field, hint in wanted.items():
        value = values[field]
        if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
            raise ControlError(f"{field} of a {kind} message is not of type {hint.__name__}")
    message: ControlMessage = _TYPES[kind](**values)
    return message
