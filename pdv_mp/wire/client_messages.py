"""The messages of clients: :func:`decode_client` turns a frame that anyone may have sent into one
of these types, or raises :class:`ProtocolError`, which is the ``error`` to answer with."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from pdv_mp.sampling_params import MAX_STOPS, ParameterError, SamplingParams
from pdv_mp.wire.protocol import (
    DEFAULT_MAX_MESSAGE_BYTES,
    MAX_BATCHES,
    MAX_CONTAINERS,
    MAX_ID_CHARACTERS,
    VERSION,
    ErrorCode,
    ProtocolError,
    unpack,
)


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
    add_special_tokens: bool = True


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
    """``info``: answered with the state of the server, and at least so many of its last batches."""

    batches: int = MAX_BATCHES


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenize:
    """``tokenize``: text to ids."""

    id: str
    prompt: str
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Detokenize:
    """``detokenize``: ids to text, or to the bytes of each."""

    id: str
    ids: list[int]
    bytes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Describe:
    """``describe``: answered with what a chat is written with."""


ClientMessage = Hello | Generate | Cancel | Ping | Info | Tokenize | Detokenize | Describe


def decode_client(
    frame: bytes,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    allowed: Container[str] | None = None,
) -> ClientMessage:
    """One client frame, checked against docs/protocol.md.

    ``allowed``: the types that a client without the server's token may send; any other, known or
    not, is ``unauthenticated``, whatever else is wrong with it.

    Raises ProtocolError, and nothing else, whatever the bytes are.
    """
    if len(frame) > max_message_bytes:
        raise ProtocolError(
            ErrorCode.TOO_LARGE,
            f"the message has {len(frame)} bytes; at most {max_message_bytes} are allowed",
        )
    fields = unpack(frame, MAX_CONTAINERS)
    fields_of = _Fields(fields)
    version = fields_of.integer("v")
    if version != VERSION:
        raise ProtocolError(
            ErrorCode.UNSUPPORTED_VERSION,
            f"v {version} is not spoken here; this server speaks {VERSION}",
            fields_of.id,
        )
    kind = fields_of.text("type")
    if allowed is not None and kind not in allowed:
        raise ProtocolError(
            ErrorCode.UNAUTHENTICATED,
            "this server needs a token; send it in hello before anything else",
            fields_of.id,
        )
    if kind not in _PARSERS:
        known = ", ".join(_PARSERS)
        raise fields_of.bad(f"type {kind[:40]!r} is unknown; known types are {known}")
    return _PARSERS[kind](fields_of)


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
            logprobs=fields.get("logprobs"),
            prompt_logprobs=fields.get("prompt_logprobs"),
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
        add_special_tokens=fields.boolean("add_special_tokens", True),
    )


def _hello(fields: _Fields) -> Hello:
    token = fields.text("token", "") or None
    return Hello(client=fields.text("client", ""), token=token)


def _cancel(fields: _Fields) -> Cancel:
    return Cancel(id=fields.request_id())


def _ping(fields: _Fields) -> Ping:
    return Ping(n=fields.integer("n"))


def _info(fields: _Fields) -> Info:
    if fields.get("batches") is None:
        return Info()
    batches = fields.integer("batches")
    if not 0 <= batches <= MAX_BATCHES:
        raise fields.bad(f"batches must be from 0 to {MAX_BATCHES}")
    return Info(batches=batches)


def _tokenize(fields: _Fields) -> Tokenize:
    return Tokenize(
        id=fields.request_id(),
        prompt=fields.text("prompt"),
        add_special_tokens=fields.boolean("add_special_tokens", True),
    )


def _detokenize(fields: _Fields) -> Detokenize:
    return Detokenize(
        id=fields.request_id(), ids=fields.ids("ids"), bytes=fields.boolean("bytes", False)
    )


def _describe(fields: _Fields) -> Describe:
    return Describe()


_PARSERS: dict[str, Callable[[_Fields], ClientMessage]] = {
    "hello": _hello,
    "generate": _generate,
    "cancel": _cancel,
    "ping": _ping,
    "info": _info,
    "tokenize": _tokenize,
    "detokenize": _detokenize,
    "describe": _describe,
}
