"""Messages between the pools process and the workers that map what it owns.

One frame per message: a msgpack array of the message's number and its fields. Conversation:
:class:`Attach` -> :class:`Offer` -> :class:`Attached` -> :class:`Welcome`, or :class:`Refused`
instead of either answer. They are exchanged once in the life of a worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import msgpack

from pdv_mp.wire.frames import WireError

POOLS_SOCKET = "pools"
"""File name of the pools process's socket in the run directory."""

HANDSHAKE = "handshake"
"""Name of the buffer through which a worker and the pools see that they share memory."""


@dataclass(frozen=True, slots=True)
class Attach:
    """Worker: I am the process ``name`` with the configuration ``fingerprint``; what is there?"""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Attached:
    """Worker: ``buffers`` are mapped, and the offer's nonce is written beside the magic number."""

    name: str
    buffers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Memfd:
    """Descriptor ``fd`` of the pools process, a file with that inode and size; ``name`` as planned.

    ``constant``: sealed, so that it can only be mapped for reading.
    """

    name: str
    fd: int
    inode: int
    nbytes: int
    constant: bool


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of a GPU: the 64 bytes of its CUDA IPC handle, its size and the number of words behind
    it; ``name`` as planned."""

    name: str
    handle: bytes
    nbytes: int
    words: int


@dataclass(frozen=True, slots=True)
class Offer:
    """Pools: what there is, in process ``pid``.

    ``num_blocks``: KV blocks of each replica. ``magic`` stands in the buffer ``handshake``, and in
    device memory behind each buffer; ``nonce`` is to be written behind it at index ``answer``
    (all int64). ``gpu``: UUID of the GPU with the device memory, empty without any.
    """

    pid: int
    num_blocks: int
    magic: int
    nonce: int
    answer: int
    gpu: str
    memfds: tuple[Memfd, ...]
    device_memory: tuple[DeviceMemory, ...]


@dataclass(frozen=True, slots=True)
class Welcome:
    """Pools: your answer has been found in the memory; use it."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Pools: you cannot attach, for the reason in ``message``."""

    message: str


PoolsMessage = Attach | Attached | Offer | Welcome | Refused

_TYPES: tuple[type[Any], ...] = get_args(PoolsMessage)
_PARTS: dict[str, type[Any]] = {"memfds": Memfd, "device_memory": DeviceMemory}
_NAMES = "buffers"
_FIELDS = {"str": str, "int": int, "bool": bool, "bytes": bytes}


def encode_pools(message: PoolsMessage) -> bytes:
    """The frame of a message."""
    values: list[Any] = []
    for name in type(message).__slots__:
        value = getattr(message, name)
        values.append([_values(part) for part in value] if name in _PARTS else value)
    packed: bytes = msgpack.packb([_TYPES.index(type(message)), values])
    return packed


def decode_pools(frame: bytes) -> PoolsMessage:
    """The message of a frame. Raises WireError for anything that is not one, whole."""
    try:
        content = msgpack.unpackb(frame)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise WireError(f"a frame of the pools is not msgpack: {error}") from error
    if (
        not isinstance(content, list)
        or len(content) != 2
        or type(content[0]) is not int
        or not 0 <= content[0] < len(_TYPES)
    ):
        raise WireError("a frame of the pools does not say which message it is")
    message: PoolsMessage = _build(_TYPES[content[0]], content[1])
    return message


def _values(part: Any) -> list[Any]:
    return [getattr(part, name) for name in type(part).__slots__]


def _build(kind: type[Any], values: Any) -> Any:
    names = kind.__slots__
    if not isinstance(values, list) or len(values) != len(names):
        raise WireError(f"a {kind.__name__} of the pools has {len(names)} fields")
    fields: list[Any] = []
    for name, value in zip(names, values, strict=True):
        if name in _PARTS:
            if not isinstance(value, list):
                raise WireError(f"{name} of a {kind.__name__} is not a list")
            fields.append(tuple(_build(_PARTS[name], part) for part in value))
            continue
        if name == _NAMES:
            if not isinstance(value, list) or any(type(part) is not str for part in value):
                raise WireError(f"{name} of a {kind.__name__} are not names")
            fields.append(tuple(value))
            continue
        wanted = _FIELDS[kind.__annotations__[name]]
        if type(value) is not wanted:
            raise WireError(f"{name} of a {kind.__name__} is not of type {wanted.__name__}")
        fields.append(value)
    return kind(*fields)
