"""The client protocol of docs/protocol.md: its encoding, errors and limits, and messages built.

Messages are built by one function each, so that field names are written once. What clients send is
decoded in ``client_messages``.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgpack

from pdv_mp.sampling_params import ParameterError, SamplingParams

VERSION = 1
DEFAULT_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
INTEGER_LIMIT = 2**53 - 1
MAX_ID_CHARACTERS = 128
MAX_BATCHES = 256
"""Most of the last batches that an ``info`` lists for each replica."""

MAX_DEPTH = 16
"""Most levels of maps and lists in a client's message, keys that we do not know included."""

MAX_CONTAINERS = 1024
"""Most maps and lists, and most keys of one map, in a client's message. Without a bound, 4 MiB of
empty lists take seconds and hundreds of megabytes to unpack."""


class ErrorCode(str, Enum):
    """Every ``error.code`` of the protocol."""

    BAD_REQUEST = "bad_request"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNAUTHENTICATED = "unauthenticated"
    DUPLICATE_ID = "duplicate_id"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    TOO_LARGE = "too_large"
    QUEUE_FULL = "queue_full"
    DRAINING = "draining"
    LANE_FAILED = "lane_failed"
    SLOW_CONSUMER = "slow_consumer"
    INTERNAL = "internal"

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed when it is sent again."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    (ErrorCode.QUEUE_FULL, ErrorCode.DRAINING, ErrorCode.LANE_FAILED, ErrorCode.INTERNAL)
)


class ProtocolError(Exception):
    """A client's message cannot be served; ``id`` is the request's where it could be read."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        id: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.id = id
        self.retry_after_ms = retry_after_ms


def unpack(frame: bytes, max_containers: int | None = None) -> dict[str, Any]:
    """The frame's map, every value of a type and range that the encoding allows.

    ``max_containers``: most maps and lists in it, and most keys of one map; None is without bound.

    Raises ProtocolError.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": _unique_text_keys}
    if max_containers is not None:
        counter = _ContainerCounter(max_containers)
        hooks = {
            "object_pairs_hook": counter.count_map,
            "list_hook": counter.count,
            "max_map_len": max_containers,
        }
    try:
        fields = msgpack.unpackb(frame, raw=False, ext_hook=_refuse_extension, **hooks)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ProtocolError(
            ErrorCode.BAD_REQUEST, f"the message is not a msgpack map of protocol 1: {error}"
        ) from error
    if not isinstance(fields, dict):
        raise ProtocolError(ErrorCode.BAD_REQUEST, "the message is not a msgpack map")
    id = fields.get("id")
    readable_id = id if isinstance(id, str) and 1 <= len(id) <= MAX_ID_CHARACTERS else None
    for name, value in fields.items():
        kind = type(value)
        if kind in _HARMLESS or (kind is int and -INTEGER_LIMIT <= value <= INTEGER_LIMIT):
            continue
        fault = _fault(value)
        if fault:
            raise ProtocolError(ErrorCode.BAD_REQUEST, f"{name[:40]} {fault}", readable_id)
    return fields


def _unique_text_keys(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    for key in result:
        if not isinstance(key, str):
            raise ValueError("a key is not text")
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


class _ContainerCounter:
    """Ends the unpacking of a message with too many maps and lists."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit

    def count(self, container: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it holds more than {self._limit} maps and lists")
        return container

    def count_map(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        self.count(pairs)
        return _unique_text_keys(pairs)


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension types are not allowed (type {code})")


_HARMLESS = frozenset((str, bool, type(None)))


def _fault(value: Any) -> str | None:
    """What the encoding forbids in a value, or None; iterative, so that depth costs no stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for item in level:
            kind = type(item)
            if kind in _HARMLESS:
                continue
            if kind is int:
                if not -INTEGER_LIMIT <= item <= INTEGER_LIMIT:
                    return "holds an integer outside ±(2^53 - 1)"
            elif kind is float:
                if not math.isfinite(item):
                    return "holds a number that is not finite"
            elif kind is list:
                kinds = set(map(type, item))
                if kinds <= _HARMLESS:
                    continue
                if kinds == {int}:
                    if min(item) < -INTEGER_LIMIT or max(item) > INTEGER_LIMIT:
                        return "holds an integer outside ±(2^53 - 1)"
                else:
                    deeper.extend(item)
            elif kind is dict:
                deeper.extend(item.values())
            elif kind is bytes:
                return "holds bytes; text must be sent as msgpack str"
            else:
                return "holds an extension type"
        if not deeper:
            return None
        level = deeper
    return f"is nested deeper than {MAX_DEPTH} levels"


@dataclass(slots=True)
class PackedList:
    """A list of ``count`` elements that are encoded already, one after the other in ``data``."""

    count: int = 0
    data: bytearray = field(default_factory=bytearray)

    def extend(self, other: PackedList) -> None:
        """Append the elements of another list."""
        self.count += other.count
        self.data += other.data


def encode(type: str, /, **fields: Any) -> bytes:
    """The frame of a message of either direction; a value may be a :class:`PackedList`."""
    message = {"v": VERSION, "type": type, **fields}
    if PackedList not in map(builtins.type, fields.values()):
        frame: bytes = msgpack.packb(message)
        return frame
    packer = msgpack.Packer()
    parts = [packer.pack_map_header(len(message))]
    for name, value in message.items():
        parts.append(packer.pack(name))
        if isinstance(value, PackedList):
            parts += (packer.pack_array_header(value.count), value.data)
        else:
            parts.append(packer.pack(value))
    return b"".join(parts)


def check_text(name: str, text: str) -> None:
    """Raises ParameterError for a lone surrogate, by which Python stands in for bytes that are not
    UTF-8, on a command line for instance."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ParameterError(
            f"{name} is not valid Unicode text: character {error.start + 1} is a lone surrogate"
        ) from error


def token_ids(name: str, ids: Sequence[int]) -> list[int]:
    """Token ids of any integer type as a message takes them. Raises TypeError for what is not an
    integer, ParameterError for one that no message can hold."""
    try:
        result = [operator.index(token) for token in ids]
    except TypeError as error:
        raise TypeError(f"{name} must be text or a list of token ids: {error}") from error
    if result and (min(result) < -INTEGER_LIMIT or max(result) > INTEGER_LIMIT):
        raise ParameterError(f"{name} holds an integer outside ±(2^53 - 1)")
    return result


def generate(
    id: str,
    prompt: str | Sequence[int],
    params: SamplingParams,
    *,
    stream: bool = True,
    timeline: bool = False,
    add_special_tokens: bool = True,
) -> bytes:
    """The frame of a ``generate``; what has its default is left out.

    Raises ParameterError for text that is not Unicode, TypeError for a prompt that is neither text
    nor token ids.
    """
    check_text("id", id)
    fields: dict[str, Any] = {"id": id}
    if isinstance(prompt, str):
        check_text("prompt", prompt)
        fields["prompt"] = prompt
    else:
        fields["prompt_ids"] = token_ids("prompt", prompt)
    for text in params.stop:
        check_text("stop", text)
    for name, default in _DEFAULTS.items():
        value = getattr(params, name)
        if value != default:
            fields[name] = list(value) if isinstance(value, tuple) else value
    if not stream:
        fields["stream"] = False
    if timeline:
        fields["timeline"] = True
    if not add_special_tokens:
        fields["add_special_tokens"] = False
    return encode("generate", **fields)


_DEFAULTS: dict[str, Any] = {
    name: getattr(SamplingParams(), name)
    for name in (
        "max_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "seed",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "speculate",
        "logprobs",
        "prompt_logprobs",
    )
}


def accepted(id: str, prompt_tokens: int, seed: int) -> bytes:
    """The frame of an ``accepted``."""
    return encode("accepted", id=id, prompt_tokens=prompt_tokens, seed=seed)


def tokens(
    id: str,
    seq: int,
    offset: int,
    ids: list[int],
    drafted: list[int],
    text: str,
    logprobs: PackedList | None = None,
) -> bytes:
    """The frame of a ``tokens``; ``drafted`` has one 0 or 1 per id, and ``logprobs``, where they
    were asked for, one entry of ``wire.logprobs``."""
    fields: dict[str, Any] = {
        "id": id,
        "seq": seq,
        "offset": offset,
        "ids": ids,
        "drafted": drafted,
        "text": text,
    }
    if logprobs is not None:
        fields["logprobs"] = logprobs
    return encode("tokens", **fields)


def error(
    code: ErrorCode,
    message: str,
    id: str | None = None,
    *,
    retryable: bool | None = None,
    retry_after_ms: int | None = None,
) -> bytes:
    """The frame of an ``error``; ``retryable`` is the code's own unless given."""
    fields: dict[str, Any] = {
        "id": id,
        "code": code.value,
        "message": message,
        "retryable": code.retryable if retryable is None else retryable,
    }
    if retry_after_ms is not None:
        fields["retry_after_ms"] = retry_after_ms
    return encode("error", **fields)


def decode_server(frame: bytes) -> dict[str, Any]:
    """A server's message, for clients. Raises ProtocolError for what is not one."""
    fields = unpack(frame)
    version, kind = fields.get("v"), fields.get("type")
    if version != VERSION:
        raise ProtocolError(
            ErrorCode.UNSUPPORTED_VERSION, f"the server speaks version {version}, not {VERSION}"
        )
    if not isinstance(kind, str):
        raise ProtocolError(ErrorCode.BAD_REQUEST, "the server's message has no type")
    return fields
