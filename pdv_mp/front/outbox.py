"""What waits for a client: the kinds of messages, and one connection's queue of them.

``tokens`` of one request that wait are merged. Each message is encoded once, at its first attempt,
so that ``seq`` and time stamps are those of the sending.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from pdv_mp.wire import protocol
from pdv_mp.wire.protocol import PackedList

if TYPE_CHECKING:
    from pdv_mp.front.journal import Request

FIRST_RETRY_SECONDS = 0.005
BYTES_PER_ID = 6
"""Estimate of a token id with its flag, encoded."""

_MESSAGE_OVERHEAD = 96


class Outgoing(Protocol):
    """A message to a client. ``size`` estimates its bytes before it is encoded."""

    size: int

    def encode(self) -> bytes:
        """The frame; called once, when it is about to be sent."""

    def sent(self) -> None:
        """Called when the socket has taken the frame."""


class Reply:
    """A message that is encoded already and has no consequences."""

    __slots__ = ("_frame", "size")

    def __init__(self, frame: bytes) -> None:
        self._frame = frame
        self.size = len(frame) + _MESSAGE_OVERHEAD

    def encode(self) -> bytes:
        return self._frame

    def sent(self) -> None:
        pass


class LastMessage:
    """A request's ``done`` or ``error``: when it is sent, the id is free again."""

    __slots__ = ("_build", "_request", "size")

    def __init__(self, request: Request, build: Callable[[], bytes], size: int) -> None:
        self._request = request
        self._build = build
        self.size = size + _MESSAGE_OVERHEAD

    def encode(self) -> bytes:
        return self._build()

    def sent(self) -> None:
        del self._request.connection.open[self._request.id]


class WaitingTokens:
    """One ``tokens`` message, which grows for as long as it is not encoded."""

    __slots__ = ("_drafted", "_ids", "_logprobs", "_offset", "_texts", "request", "size")

    def __init__(
        self,
        request: Request,
        offset: int,
        ids: list[int],
        drafted: list[int],
        text: str,
        logprobs: PackedList | None,
    ) -> None:
        self.request = request
        self._offset = offset
        self._ids = ids
        self._drafted = drafted
        self._texts = [text]
        self._logprobs = logprobs
        self.size = _MESSAGE_OVERHEAD + _size(ids, text, logprobs)

    def extend(
        self, ids: list[int], drafted: list[int], text: str, logprobs: PackedList | None
    ) -> int:
        """Merge what came after. Returns by how many bytes the message grew."""
        self._ids = self._ids + ids
        self._drafted = self._drafted + drafted
        self._texts.append(text)
        if self._logprobs is not None and logprobs is not None:
            self._logprobs.extend(logprobs)
        growth = _size(ids, text, logprobs)
        self.size += growth
        return growth

    def encode(self) -> bytes:
        request = self.request
        request.waiting_tokens = None
        seq = request.next_seq
        request.next_seq += 1
        return protocol.tokens(
            request.id,
            seq,
            self._offset,
            self._ids,
            self._drafted,
            "".join(self._texts),
            self._logprobs,
        )

    def sent(self) -> None:
        pass


def _size(ids: list[int], text: str, logprobs: PackedList | None) -> int:
    size = BYTES_PER_ID * len(ids) + len(text.encode())
    return size if logprobs is None else size + len(logprobs.data)


class Connection:
    """One client. ``open``: requests whose last message has not been sent, by the client's id;
    ``questions``: its ``tokenize`` messages that are not answered yet.

    ``number`` is told to the client; ``link`` is the number of the transport connection.
    ``authenticated``: it has sent the server's token."""

    __slots__ = (
        "authenticated",
        "gone",
        "last_sent_ns",
        "link",
        "number",
        "open",
        "outbox",
        "outbox_bytes",
        "questions",
        "retry_at",
        "retry_seconds",
        "routing_id",
    )

    def __init__(self, routing_id: bytes, number: int, link: int) -> None:
        self.routing_id = routing_id
        self.number = number
        self.link = link
        self.open: dict[str, Request] = {}
        self.questions = 0
        self.outbox: deque[tuple[Outgoing, bytes | None]] = deque()
        self.outbox_bytes = 0
        self.last_sent_ns = 0
        self.retry_at = 0.0
        self.retry_seconds = FIRST_RETRY_SECONDS
        self.gone = False
        self.authenticated = False

    @property
    def is_awaiting(self) -> bool:
        """Whether it has open requests or questions."""
        return bool(self.open) or self.questions > 0

    @property
    def has_assigned_id(self) -> bool:
        """Whether libzmq made the routing id: a zero byte, then four of a number."""
        return len(self.routing_id) == 5 and self.routing_id[0] == 0

    def drop_tokens(self) -> None:
        """Drop the waiting ``tokens`` of requests that have no last message yet."""
        kept: deque[tuple[Outgoing, bytes | None]] = deque()
        for item, frame in self.outbox:
            if isinstance(item, WaitingTokens) and not item.request.ended:
                item.request.waiting_tokens = None
                self.outbox_bytes -= item.size
            else:
                kept.append((item, frame))
        self.outbox = kept
