"""The client's side of docs/protocol.md without input or output: frames in, frames and events out.

:class:`ClientCore` is what ``Client`` and ``AsyncClient`` share. It decides what to send, puts
each answer where its caller looks for it, and recovers: when the server's ``instance`` or this
connection's number changes, or nothing is heard for :data:`SILENCE_SECONDS` with something open,
everything open is sent again. A request's seed is fixed before it is first sent, so it gives the
same tokens again, and those that were delivered are dropped by their offset. A request that is
refused with ``queue_full`` is sent again after the server's ``retry_after_ms``.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pdv_mp.sampling_params import SamplingParams
from pdv_mp.wire import protocol

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 5.0
"""Without a message for this long, open requests count as lost."""

PING_SECONDS = 1.5
"""Silence after which the server is asked for a sign of life; an ``alive`` comes each second."""

TICK_SECONDS = 0.5


class ServerError(RuntimeError):
    """The server answered with an ``error``.

    ``code`` is one of docs/protocol.md; ``retryable`` says whether sending the same again may
    help; ``id`` is the request's; ``retry_after_ms`` comes with ``queue_full``.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        id: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable
        self.id = id
        self.retry_after_ms = retry_after_ms


class ServerUnreachable(ConnectionError):
    """Nothing was heard from the server for as long as the client was told to wait."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability in the model's own distribution (before temperature and
    truncation), and the most probable tokens at its place with theirs, best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of a request. ``offset`` is the first one's index in the output; ``drafted`` has
    1 for each id that was a draft token; ``text`` may be empty, and so may ``ids``. ``logprobs``
    has one entry per id, None unless they were asked for."""

    id: str
    offset: int
    ids: list[int]
    drafted: list[int]
    text: str
    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request. ``drafted`` is empty for a request that was not streamed.

    ``logprobs`` has one entry per id, ``prompt_logprobs`` one for each token of the prompt after
    the first (fewer if the request was aborted early); None unless they were asked for.
    """

    id: str
    text: str
    ids: list[int]
    drafted: list[int]
    finish: str
    stop_reason: str | int | None
    seed: int
    usage: dict[str, int]
    speculation: dict[str, Any]
    timing: dict[str, float | None]
    timeline: dict[str, Any] | None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None


@dataclass(slots=True, eq=False)
class Question:
    """A message that gets one answer, such as ``ping``."""

    answer_type: str
    key: str | int | None
    frame: bytes
    reintroduced: bool = False
    answer: dict[str, Any] | None = None
    error: Exception | None = None

    @property
    def finished(self) -> bool:
        return self.answer is not None or self.error is not None


@dataclass(slots=True, eq=False)
class Generation:
    """An open ``generate``: what has been delivered, and how far the present attempt is."""

    id: str
    frame: bytes
    seed: int
    prompt_tokens: int = 0
    chunks: deque[Chunk] = field(default_factory=deque)
    ids: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    characters: int = 0
    attempt_characters: int = 0
    attempt_seq: int = 0
    resent: bool = False
    reintroduced: bool = False
    cancelled: bool = False
    refused_since: float | None = None
    retry_at: float | None = None
    completion: Completion | None = None
    error: Exception | None = None

    @property
    def finished(self) -> bool:
        return self.completion is not None or self.error is not None


Call = Question | Generation

_ANSWERS = {
    "hello": "welcome",
    "ping": "pong",
    "info": "info",
    "tokenize": "tokenized",
    "detokenize": "detokenized",
    "describe": "description",
}


class ClientCore:
    """One client's state. Its owner moves frames from ``outgoing`` to a DEALER socket, hands over
    what that receives, calls :meth:`tick` at least every :meth:`seconds_to_tick`, and opens a new
    socket when ``wants_new_socket`` is set. Times are ``time.monotonic`` seconds.

    ``timeout``: most seconds of silence while something is open; ``connect_timeout``: the same for
    as long as the server was never heard. ``queue_timeout``: for how long a request that is refused
    with ``queue_full`` is sent again before that is its error. ``changed`` collects calls that have
    something new, for owners that wait on several.
    """

    def __init__(
        self,
        endpoint: str,
        timeout: float,
        connect_timeout: float,
        on_message: Callable[[dict[str, Any]], None] | None,
        token: str | None = None,
        queue_timeout: float = 0.0,
    ) -> None:
        self._introduction = {"client": "pdv_mp"}
        if token is not None:
            if not token:
                raise ValueError("token is empty")
            protocol.check_text("token", token)
            self._introduction["token"] = token
        self.endpoint = endpoint
        self.timeout = timeout
        self.connect_timeout = min(connect_timeout, timeout)
        self.queue_timeout = queue_timeout
        self.outgoing: deque[bytes] = deque()
        self.wants_new_socket = True
        self.changed: set[Call] = set()
        self.welcome: dict[str, Any] | None = None
        self._on_message = on_message
        self._generations: dict[str, Generation] = {}
        self._questions: list[Question] = []
        self._identity: tuple[Any, Any] | None = None
        self._waiting_since = 0.0
        self._heard = False
        self._last_heard = 0.0
        self._last_sign_asked = 0.0
        self._last_connected = 0.0
        self._prefix = secrets.token_hex(4)
        self._next_number = 0

    @property
    def busy(self) -> bool:
        """Whether anything is open."""
        return bool(self._generations or self._questions)

    def connected(self, now: float) -> None:
        """The owner has a new socket: introduce ourselves and send what is open."""
        self.wants_new_socket = False
        self.outgoing.clear()
        self._identity = None
        self._last_connected = now
        self._send_open()

    def _send_open(self) -> None:
        self._introduce()
        for generation in list(self._generations.values()):
            if generation.cancelled:
                self._complete(generation, {"finish": "abort"})
            else:
                generation.retry_at = None
                self.outgoing.append(generation.frame)
        self.outgoing.extend(question.frame for question in self._questions)

    def _introduce(self) -> None:
        self.outgoing.append(protocol.encode("hello", **self._introduction))

    def _send_again(self) -> None:
        for generation in self._generations.values():
            generation.resent = True
        self._send_open()

    def _next_id(self) -> str:
        self._next_number += 1
        return f"{self._prefix}-{self._next_number}"

    def _begin(self, frame: bytes, now: float) -> None:
        limit = protocol.DEFAULT_MAX_MESSAGE_BYTES
        if self.welcome is not None:
            limit = self.welcome["limits"]["max_message_bytes"]
        if len(frame) > limit:
            raise ServerError(
                "too_large", f"the message has {len(frame)} bytes; the server takes {limit}"
            )
        if not self.busy:
            self._waiting_since = now
        if not self.wants_new_socket:
            self.outgoing.append(frame)

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        now: float,
        *,
        stream: bool,
        timeline: bool,
        id: str | None,
        add_special_tokens: bool = True,
    ) -> Generation:
        """Start a request. Raises ValueError for an id that is open, ParameterError for text that
        is not Unicode, ServerError if too large."""
        id = self._next_id() if id is None else id
        if id in self._generations:
            raise ValueError(f"a request with the id {id!r} is open")
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(53))
        frame = protocol.generate(
            id,
            prompt,
            params,
            stream=stream,
            timeline=timeline,
            add_special_tokens=add_special_tokens,
        )
        self._begin(frame, now)
        generation = Generation(id, frame, params.seed or 0)
        if params.logprobs is not None:
            generation.logprobs = []
        self._generations[id] = generation
        return generation

    def ask(self, kind: str, now: float, **fields: Any) -> Question:
        """Send a message that gets one answer. Raises ParameterError for text that is not Unicode,
        ServerError if too large."""
        key: str | int | None = None
        if kind == "hello":
            fields.update(self._introduction)
        if kind in ("tokenize", "detokenize"):
            key = fields["id"] = self._next_id()
        elif kind == "ping":
            self._next_number += 1
            key = fields["n"] = self._next_number
        if "prompt" in fields:
            protocol.check_text("prompt", fields["prompt"])
        if "ids" in fields:
            fields["ids"] = protocol.token_ids("ids", fields["ids"])
        frame = protocol.encode(kind, **fields)
        self._begin(frame, now)
        question = Question(_ANSWERS[kind], key, frame)
        self._questions.append(question)
        return question

    def cancel(self, id: str) -> None:
        """Ask for the end of a request; it ends with ``abort`` unless it was over already."""
        generation = self._generations.get(id)
        if generation is not None:
            generation.cancelled = True
            if generation.retry_at is not None:  # the server does not have it
                self._complete(generation, {"finish": "abort"})
                return
            self.outgoing.append(protocol.encode("cancel", id=id))

    def abandon(self, call: Call) -> None:
        """Forget a call whose answer nobody waits for any more."""
        if isinstance(call, Generation):
            if self._generations.pop(call.id, None) is not None:
                call.error = RuntimeError(f"request {call.id} was left before its end")
                self.changed.add(call)
                self.outgoing.append(protocol.encode("cancel", id=call.id))
        elif call in self._questions:
            self._questions.remove(call)

    def seconds_to_tick(self, now: float) -> float | None:
        """How long the owner may wait for frames before it calls :meth:`tick`; None: for ever."""
        if not self.busy:
            return None
        retries = [
            item.retry_at - now for item in self._generations.values() if item.retry_at is not None
        ]
        return max(0.0, min(TICK_SECONDS, self.connect_timeout, *retries))

    def tick(self, now: float) -> None:
        """Send again what the server had no room for. Notice silence: ask for a sign of life, send
        again, give up."""
        if not self.busy:
            return
        for generation in self._generations.values():
            if generation.retry_at is not None and generation.retry_at <= now:
                generation.retry_at = None
                self.outgoing.append(generation.frame)
        silence = now - max(self._last_heard, self._waiting_since)
        limit = self.timeout if self._heard else self.connect_timeout
        if silence >= limit:
            self.fail(
                ServerUnreachable(
                    f"nothing was heard from {self.endpoint} for {limit:g} s; is a server "
                    "running there?"
                )
            )
        elif silence >= SILENCE_SECONDS and now - self._last_connected >= SILENCE_SECONDS:
            for generation in self._generations.values():
                generation.resent = True
            self.wants_new_socket = True
        elif silence >= PING_SECONDS and now - self._last_sign_asked >= 1.0:
            self._last_sign_asked = now
            self.outgoing.append(protocol.encode("ping", n=0))

    def fail(self, error: Exception) -> None:
        """End everything that is open with an exception."""
        calls: Iterable[Call] = [*self._generations.values(), *self._questions]
        for call in calls:
            call.error = error
            self.changed.add(call)
        self._generations.clear()
        self._questions.clear()
        self.outgoing.clear()
        self.wants_new_socket = True  # what libzmq still queues must not be sent later

    def receive(self, frame: bytes, now: float) -> None:
        """Take in one frame. Raises ProtocolError for one that no server sends."""
        message = protocol.decode_server(frame)
        self._heard = True
        self._last_heard = now
        if self._on_message is not None:
            self._on_message(message)
        kind = message["type"]
        if kind in ("welcome", "pong", "alive"):
            self._check_identity((message["instance"], message["connection"]))
        if kind == "welcome":
            self.welcome = message
        if kind in ("accepted", "tokens", "done"):
            self._progress(kind, message)
        elif kind == "error":
            self._refused(message)
        elif kind != "alive":
            self._answered(kind, message)

    def _check_identity(self, identity: tuple[Any, Any]) -> None:
        changed = self._identity is not None and self._identity != identity
        self._identity = identity
        if changed and self.busy:
            self._send_again()

    def _progress(self, kind: str, message: dict[str, Any]) -> None:
        generation = self._generations.get(message["id"])
        if generation is None:
            if kind == "accepted":  # sent twice, and the first is over
                self.outgoing.append(protocol.encode("cancel", id=message["id"]))
            return
        if kind == "accepted":
            generation.refused_since = None
            generation.seed = message["seed"]
            generation.prompt_tokens = message["prompt_tokens"]
            generation.attempt_seq = generation.attempt_characters = 0
        elif kind == "tokens":
            self._add_tokens(generation, message)
        else:
            self._complete(generation, message)

    def _add_tokens(self, generation: Generation, message: dict[str, Any]) -> None:
        known = len(generation.ids)
        if message["seq"] != generation.attempt_seq or message["offset"] > known:
            self._finish(
                generation,
                ServerError("internal", "messages were lost on the way", id=message["id"]),
            )
            self.outgoing.append(protocol.encode("cancel", id=message["id"]))
            return
        generation.attempt_seq += 1
        old = known - message["offset"]
        ids, drafted = message["ids"][old:], message["drafted"][old:]
        logprobs = None
        if generation.logprobs is not None:
            logprobs = _token_logprobs(message["logprobs"][old:])
            generation.logprobs += logprobs
        old = max(0, generation.characters - generation.attempt_characters)
        text = message["text"][old:]
        generation.attempt_characters += len(message["text"])
        generation.characters = max(generation.characters, generation.attempt_characters)
        if ids or text:
            generation.ids += ids
            generation.drafted += drafted
            generation.texts.append(text)
            generation.chunks.append(Chunk(generation.id, known, ids, drafted, text, logprobs))
            self.changed.add(generation)

    def _complete(self, generation: Generation, message: dict[str, Any]) -> None:
        logprobs, prompt_logprobs = message.get("logprobs"), message.get("prompt_logprobs")
        generation.completion = Completion(
            id=generation.id,
            text=message.get("text", "".join(generation.texts)),
            ids=message.get("ids", generation.ids),
            drafted=generation.drafted,
            finish=message["finish"],
            stop_reason=message.get("stop_reason"),
            seed=generation.seed,
            usage=message.get("usage", {}),
            speculation=message.get("speculation", {}),
            timing=message.get("timing", {}),
            timeline=message.get("timeline"),
            logprobs=generation.logprobs if logprobs is None else _token_logprobs(logprobs),
            prompt_logprobs=None if prompt_logprobs is None else _token_logprobs(prompt_logprobs),
        )
        self._finish(generation)

    def _finish(self, call: Call, error: Exception | None = None) -> None:
        call.error = error
        self.changed.add(call)
        if isinstance(call, Generation):
            self._generations.pop(call.id, None)
        else:
            self._questions.remove(call)

    def _refused(self, message: dict[str, Any]) -> None:
        id = message["id"]
        error = ServerError(
            message["code"],
            message["message"] + self._advice(message["code"]),
            retryable=message["retryable"],
            id=id,
            retry_after_ms=message.get("retry_after_ms"),
        )
        call: Call | None = self._generations.get(id)
        if isinstance(call, Generation) and call.resent and error.code == "duplicate_id":
            return  # it had survived; the open one goes on
        if isinstance(call, Generation) and self._retry_later(call, error):
            return
        if call is None:
            refused = [item for item in self._questions if _may_be_refused(item, id, error.code)]
            call = min(refused, key=lambda item: item.reintroduced, default=None)
        if error.code == "unauthenticated" and self._introduce_again(call):
            return
        if call is not None:
            self._finish(call, error)
        elif id is None and error.code != "unauthenticated":  # each call gets its own
            logger.warning("the server answered %s", error)

    def _introduce_again(self, call: Call | None) -> bool:
        """The server may have forgotten this connection, and with it our token: send both once
        more. False if that has been tried, or there is none."""
        if call is None or call.reintroduced or "token" not in self._introduction:
            return False
        call.reintroduced = True
        self._introduce()
        self.outgoing.append(call.frame)
        return True

    def _retry_later(self, generation: Generation, error: ServerError) -> bool:
        """Whether the server was full and this is no error yet: the request is to be sent again
        when the server said so, or nobody wants it any more."""
        if error.code != "queue_full" or error.retry_after_ms is None:
            return False
        if generation.cancelled:
            self._complete(generation, {"finish": "abort"})
            return True
        now = self._last_heard
        if generation.refused_since is None:
            generation.refused_since = now
        retry_at = now + error.retry_after_ms / 1000
        if retry_at > generation.refused_since + self.queue_timeout:
            return False
        generation.retry_at = retry_at
        return True

    def _advice(self, code: str) -> str:
        if code != "unauthenticated":
            return ""
        if "token" in self._introduction:
            return "; check that it is the one in the server's --token-file"
        return " (Client(token=...), pdv-client --token-file PATH)"

    def _answered(self, kind: str, message: dict[str, Any]) -> None:
        keyless = kind in ("welcome", "info", "description")
        key = None if keyless else message.get("id", message.get("n"))
        for question in self._questions:
            if question.answer_type == kind and question.key == key:
                question.answer = message
                self._finish(question)
                return


def _token_logprobs(entries: list[dict[str, Any]]) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            entry["id"], entry["logprob"], tuple((id, logprob) for id, logprob in entry["top"])
        )
        for entry in entries
    ]


def _may_be_refused(question: Question, id: str | None, code: str) -> bool:
    if code == "unauthenticated" and question.answer_type == "pong":
        return False  # a ping needs no token
    return question.key == id if isinstance(question.key, str) else id is None
