"""A response whose length is not known at its beginning, written past ASGI."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_EXTENSION = "pdv.stream_writer"

Header = tuple[bytes, bytes]


class StreamWriter:
    """Writes the response of one request without a coroutine, its beginning together with its first
    part. Through ASGI each part passes the ``send`` of every layer, which costs several times what
    the part itself does.

    ``headers``: of the response, besides those that frame its body. Until the first ``write`` the
    request may be answered through ASGI instead.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.headers: list[Header] = []
        self._cycle = cycle
        self._is_chunked = cycle.scope["http_version"] == "1.1"
        self._on_hangup: Callable[[], None] | None = None

    @classmethod
    def attach(cls, cycle: RequestResponseCycle) -> StreamWriter:
        """To a request that no one has begun to answer; :meth:`of` finds it by the scope."""
        writer = cls(cycle)
        cycle.scope["extensions"] = {_EXTENSION: writer}  # type: ignore[dict-item]
        return writer

    @classmethod
    def of(cls, scope: Scope) -> StreamWriter:
        """The one of a request."""
        return cast(StreamWriter, scope["extensions"][_EXTENSION])

    @property
    def begun(self) -> bool:
        """Whether something of the response has been written."""
        return self._cycle.response_started

    @property
    def ready(self) -> bool:
        """Whether the connection takes a part now: its client is there, and reads."""
        cycle = self._cycle
        return not (cycle.flow.write_paused or cycle.disconnected)

    async def drain(self) -> None:
        """Wait until the client has read enough, or has gone."""
        if self._cycle.flow.write_paused and not self._cycle.disconnected:
            await self._cycle.flow.drain()

    def write(self, data: bytes, *, last: bool = False) -> None:
        """Write a part, which is not empty unless it is the last. What is written to a client that
        has gone is lost."""
        cycle = self._cycle
        parts: list[bytes] = []
        if not cycle.response_started:
            cycle.response_started = True
            parts.append(self._head())
        if not self._is_chunked:
            parts.append(data)
        else:
            parts.append(b"%x\r\n%b\r\n" % (len(data), data) if data else b"")
            if last:
                parts.append(b"0\r\n\r\n")
        cycle.transport.write(b"".join(parts))
        if last:
            self._complete()

    def on_hangup(self, callback: Callable[[], None]) -> None:
        """``callback`` is called when the client goes; at once if it has gone."""
        self._on_hangup = callback
        self._cycle.flow.resume_reading()  # a body in many parts may have stopped it
        if self._cycle.disconnected:
            callback()

    def hang_up(self) -> None:
        """The connection tells that it was lost."""
        cycle = self._cycle
        if not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if self._on_hangup is not None:
                self._on_hangup()

    def _head(self) -> bytes:
        lines = [b"HTTP/1.1 200 OK"]
        lines += [b"%b: %b" % header for header in self.headers]
        if not self._cycle.keep_alive:
            lines.append(b"connection: close")
        if self._is_chunked:
            lines.append(b"transfer-encoding: chunked")
        return b"\r\n".join((*lines, b"", b""))

    def _complete(self) -> None:
        """As uvicorn ends a response of its own."""
        cycle = self._cycle
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
