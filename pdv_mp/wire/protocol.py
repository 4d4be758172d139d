"""The client protocol of docs/protocol.md: client frames decoded and checked, messages built.

:func:`decode_client` turns a frame that anyone may have sent into one of the ``Client...`` message
types or raises :class:`ProtocolError`, which is the ``error`` to answer with. The other direction
is built by one function per message, so that field names are written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgpack

from pdv_mp.sampling_params import MAX_LOGPROBS, MAX_STOPS, ParameterError, SamplingParams

VERSION = 1
DEFAULT_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
INTEGER_LIMIT = 2**53 - 1
MAX_ID_CHARACTERS = 128
MAX_DEPTH = 16
"""Most levels of maps and lists in a client's message, keys that we do not know included."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """``hello``: who the client is."""

    client: str = ""
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """``generate``: exactly one of ``prompt`` and ``prompt_ids`` is set; values are in range."""

    id: str
    prompt: str | None
    prompt_ids: list[int] | None
    params: SamplingParams
    stream: bool = True
    timeline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """``cancel``: end a request."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """``ping``: answered with the same ``n``."""

    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """``info``: answered with the state of the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenize:
    """``tokenize``: text to ids."""

    id: str
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Detokenize:
    """``detokenize``: ids to text."""

    id: str
    ids: list[int]


ClientMessage = Hello | Generate | Cancel | Ping | Info | Tokenize | Detokenize


def decode_client(
    frame: bytes, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
) -> ClientMessage:
    """One client frame, checked against docs/protocol.md.

    Raises ProtocolError, and nothing else, whatever the bytes are.
    """
    if len(frame) > max_message_bytes:
        raise ProtocolError(
            ErrorCode.TOO_LARGE,
            f"the message has {len(frame)} bytes; at most {max_message_bytes} are allowed",
        )
    fields = _unpack(frame)
    fields_of = _Fields(fields)
    version = fields_of.integer("v")
    if version != VERSION:
        raise ProtocolError(
            ErrorCode.UNSUPPORTED_VERSION,
            f"v {version} is not spoken here; this server speaks {VERSION}",
            fields_of.id,
        )
    kind = fields_of.text("type")
    if kind not in _PARSERS:
        known = ", ".join(_PARSERS)
        raise fields_of.bad(f"type {kind[:40]!r} is unknown; known types are {known}")
    return _PARSERS[kind](fields_of)


def _unpack(frame: bytes) -> dict[str, Any]:
    """The frame's map, every value of a type and range that the encoding allows."""
    try:
        fields = msgpack.unpackb(
            frame, raw=False, object_pairs_hook=_unique_text_keys, ext_hook=_refuse_extension
        )
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ProtocolError(
            ErrorCode.BAD_REQUEST, f"the message is not a msgpack map of protocol 1: {error}"
        ) from error
    if not isinstance(fields, dict):
        raise ProtocolError(ErrorCode.BAD_REQUEST, "the message is not a msgpack map")
    id = fields.get("id")
    readable_id = id if isinstance(id, str) and 1 <= len(id) <= MAX_ID_CHARACTERS else None
    for name, value in fields.items():
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


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension types are not allowed (type {code})")


def _fault(value: Any) -> str | None:
    """What the encoding forbids in a value, or None; iterative, so that depth costs no stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str or kind is bool or item is None:
                continue
            if kind is int:
                if not -INTEGER_LIMIT <= item <= INTEGER_LIMIT:
                    return "holds an integer outside ±(2^53 - 1)"
            elif kind is float:
                if not math.isfinite(item):
                    return "holds a number that is not finite"
            elif kind is list:
                if set(map(type, item)) <= {int}:
                    if item and (min(item) < -INTEGER_LIMIT or max(item) > INTEGER_LIMIT):
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


class _Fields:
    """Typed access to a message's fields; a nil optional field counts as absent."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields
        id = fields.get("id")
        self.id = id if isinstance(id, str) and 1 <= len(id) <= MAX_ID_CHARACTERS else None

    def bad(self, message: str) -> ProtocolError:
        return ProtocolError(ErrorCode.BAD_REQUEST, message, self.id)

    def get(self, name: str, default: Any = None) -> Any:
        value = self._fields.get(name)
        return default if value is None else value

    def required(self, name: str) -> Any:
        value = self._fields.get(name)
        if value is None:
            raise self.bad(f"{name} is missing")
        return value

    def request_id(self) -> str:
        self.required("id")
        if self.id is None:
            raise self.bad(f"id must be a text of 1 to {MAX_ID_CHARACTERS} characters")
        return self.id

    def text(self, name: str, default: str | None = None) -> str:
        value = self.required(name) if default is None else self.get(name, default)
        if not isinstance(value, str):
            raise self.bad(f"{name} must be text")
        return value

    def integer(self, name: str) -> int:
        value = self.required(name)
        if type(value) is not int:
            raise self.bad(f"{name} must be an integer")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if type(value) is not bool:
            raise self.bad(f"{name} must be true or false")
        return value

    def ids(self, name: str) -> list[int]:
        value = self.required(name)
        if type(value) is not list or not set(map(type, value)) <= {int}:
            raise self.bad(f"{name} must be a list of integers")
        return value

    def sequence(self, name: str) -> tuple[Any, ...]:
        value = self.get(name, [])
        if type(value) is not list:
            raise self.bad(f"{name} must be a list")
        return tuple(value)


def _generate(fields: _Fields) -> Generate:
    id = fields.request_id()
    prompt = fields.get("prompt")
    prompt_ids = fields.get("prompt_ids")
    if (prompt is None) == (prompt_ids is None):
        raise fields.bad("exactly one of prompt and prompt_ids is needed")
    if prompt is not None:
        fields.text("prompt")
    else:
        prompt_ids = fields.ids("prompt_ids")
    for name in ("logprobs", "prompt_logprobs"):
        value = fields.get(name)
        if value is not None:
            if type(value) is not int or not 0 <= value <= MAX_LOGPROBS:
                raise fields.bad(f"{name} must be an integer between 0 and {MAX_LOGPROBS}")
            raise fields.bad(f"{name} is not supported yet")
    stop = fields.sequence("stop")
    if len(stop) > MAX_STOPS:
        raise ProtocolError(
            ErrorCode.TOO_LARGE, f"stop has {len(stop)} texts; at most {MAX_STOPS}", id
        )
    try:
        params = SamplingParams(
            max_tokens=fields.get("max_tokens"),
            temperature=fields.get("temperature", 0.0),
            top_k=fields.get("top_k", 0),
            top_p=fields.get("top_p", 1.0),
            min_p=fields.get("min_p", 0.0),
            seed=fields.get("seed"),
            stop=stop,
            stop_token_ids=fields.sequence("stop_token_ids"),
            ignore_eos=fields.get("ignore_eos", False),
            speculate=fields.get("speculate", True),
        )
    except ParameterError as error:
        raise fields.bad(str(error)) from error
    return Generate(
        id=id,
        prompt=prompt,
        prompt_ids=prompt_ids,
        params=params,
        stream=fields.boolean("stream", True),
        timeline=fields.boolean("timeline", False),
    )


def _hello(fields: _Fields) -> Hello:
    token = fields.text("token", "") or None
    return Hello(client=fields.text("client", ""), token=token)


def _cancel(fields: _Fields) -> Cancel:
    return Cancel(id=fields.request_id())


def _ping(fields: _Fields) -> Ping:
    return Ping(n=fields.integer("n"))


def _info(fields: _Fields) -> Info:
    return Info()


def _tokenize(fields: _Fields) -> Tokenize:
    return Tokenize(id=fields.request_id(), prompt=fields.text("prompt"))


def _detokenize(fields: _Fields) -> Detokenize:
    return Detokenize(id=fields.request_id(), ids=fields.ids("ids"))


_PARSERS: dict[str, Callable[[_Fields], ClientMessage]] = {
    "hello": _hello,
    "generate": _generate,
    "cancel": _cancel,
    "ping": _ping,
    "info": _info,
    "tokenize": _tokenize,
    "detokenize": _detokenize,
}


def encode(type: str, /, **fields: Any) -> bytes:
    """The frame of a message of either direction."""
    frame: bytes = msgpack.packb({"v": VERSION, "type": type, **fields})
    return frame


def generate(
    id: str,
    prompt: str | Sequence[int],
    params: SamplingParams,
    *,
    stream: bool = True,
    timeline: bool = False,
) -> bytes:
    """The frame of a ``generate``; what has its default is left out."""
    fields: dict[str, Any] = {"id": id}
    fields["prompt" if isinstance(prompt, str) else "prompt_ids"] = (
        prompt if isinstance(prompt, str) else [int(token) for token in prompt]
    )
    for name, default in _DEFAULTS.items():
        value = getattr(params, name)
        if value != default:
            fields[name] = list(value) if isinstance(value, tuple) else value
    if not stream:
        fields["stream"] = False
    if timeline:
        fields["timeline"] = True
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
    )
}


def accepted(id: str, prompt_tokens: int, seed: int) -> bytes:
    """The frame of an ``accepted``."""
    return encode("accepted", id=id, prompt_tokens=prompt_tokens, seed=seed)


def tokens(id: str, seq: int, offset: int, ids: list[int], drafted: list[int], text: str) -> bytes:
    """The frame of a ``tokens``; ``drafted`` has one 0 or 1 per id."""
    return encode("tokens", id=id, seq=seq, offset=offset, ids=ids, drafted=drafted, text=text)


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
    fields = _unpack(frame)
    version, kind = fields.get("v"), fields.get("type")
    if version != VERSION:
        raise ProtocolError(
            ErrorCode.UNSUPPORTED_VERSION, f"the server speaks version {version}, not {VERSION}"
        )
    if not isinstance(kind, str):
        raise ProtocolError(ErrorCode.BAD_REQUEST, "the server's message has no type")
    return fields
