"""What a client notes of its requests while they run, and the records that become of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.load.connection import Message
from bench.load.errors import LoadError
from bench.load.workloads import Ask
from bench.results.records import RequestRecord

REFUSALS = frozenset(("queue_full", "draining"))
"""Error codes by which a server refuses a request that it could serve at another time."""


@dataclass(slots=True)
class Request:
    """One request that was sent. Times are ns of ``time.monotonic_ns``; ``done``: the fields of
    its terminal message."""

    id: str
    client: int
    ask: Ask
    prompt_tokens: int
    arrival_ns: int
    sent_ns: int
    events: list[tuple[int, int]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    ended_ns: int | None = None
    finish: str | None = None
    error: str | None = None
    cut_off: bool = False
    done: dict[str, Any] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether it ended as it should, with all the tokens that it asked for."""
        return self.finish == "length" and len(self.ids) == self.ask.max_tokens

    def record(self, start_ns: int) -> RequestRecord:
        """Its record, with times after ``start_ns``. Raises ValueError while it is open."""
        if self.ended_ns is None:
            raise ValueError(f"request {self.id} is open")
        return RequestRecord(
            client=self.client,
            prompt=self.ask.prompt,
            prompt_tokens=self.prompt_tokens,
            max_tokens=self.ask.max_tokens,
            seed=self.ask.seed,
            arrival_ns=self.arrival_ns - start_ns,
            sent_ns=self.sent_ns - start_ns,
            ended_ns=self.ended_ns - start_ns,
            events=[(at - start_ns, count) for at, count in self.events],
            ids=self.ids,
            drafted=self.drafted,
            finish=self.finish,
            error=self.error,
            cut_off=self.cut_off,
            usage=self.done.get("usage"),
            speculation=self.done.get("speculation"),
            timing=self.done.get("timing"),
            timeline=self.done.get("timeline"),
        )


class Requests:
    """All requests of a connection since :meth:`clear`, in the order in which they were sent."""

    def __init__(self) -> None:
        self.all: list[Request] = []
        self.open: dict[str, Request] = {}
        self._count = 0

    def clear(self) -> None:
        """Forgets them. Ids are not used again."""
        self.all, self.open = [], {}

    def new_id(self) -> str:
        """The id of the next request."""
        self._count += 1
        return str(self._count)

    def add(self, request: Request) -> None:
        """One that was sent."""
        self.all.append(request)
        self.open[request.id] = request

    def take(self, message: Message, now: int) -> Request | None:
        """Notes a message that came at ``now``; returns the request that it ended, if it did.

        Raises LoadError for tokens that are missing or come twice, for a message about a request
        that is not open and for an error that concerns none.
        """
        kind = message["type"]
        if kind == "tokens":
            self._tokens(self._of(message), message, now)
            return None
        if kind not in ("done", "error"):
            return None
        request = self._of(message)
        del self.open[request.id]
        request.ended_ns, request.done = now, message
        if kind == "done":
            request.finish = message["finish"]
        else:
            request.error = message["code"]
        return request

    def _of(self, message: Message) -> Request:
        request = self.open.get(message["id"])
        if request is not None:
            return request
        if message["type"] == "error":
            raise LoadError(f"{message['code']}: {message['message']}")
        raise LoadError(f"{message['type']} came for request {message['id']}, which is not open")

    def _tokens(self, request: Request, message: Message, now: int) -> None:
        if message["offset"] != len(request.ids):
            raise LoadError(f"tokens {len(request.ids)} to {message['offset']} were lost")
        if message["ids"]:
            request.events.append((now, len(message["ids"])))
            request.ids += message["ids"]
            request.drafted += message["drafted"]
