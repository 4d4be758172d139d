"""One HTTP connection: uvicorn's, with limits on how long a client may say or read nothing.

The parser is httptools' (llhttp). It sets no limit to the size of headers, which is counted here;
and it takes no body of a request that offers another protocol, as Java's client does with each
first one. Such a request is parsed once more without its offer.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import ApiError
from gateway.guard import MAX_HEADER_BYTES, Limits, headers_too_large
from gateway.stream_writer import StreamWriter

_OFFERS = frozenset((b"connection", b"upgrade", b"http2-settings"))
_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class HttpConnection(HttpToolsProtocol):
    """Ends itself when its client is too slow."""

    def __init__(self, limits: Limits, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._limits = limits
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._unanswered: list[StreamWriter] = []  # the first is being answered
        self.lost: asyncio.Future[None] = self.loop.create_future()
        """Done when nothing can be sent any more."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(None)
        for writer in self._unanswered:
            writer.hang_up()
        self._unanswered.clear()
        self._stop_timers()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        if self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(headers_too_large())
        elif self.cycle is not before:
            self._forget_headers()
        elif self.cycle is None or self.cycle.response_complete:
            self._expect_headers()

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = self._head_without_offer() + data[offer.args[0] :]
                self.parser = httptools.HttpRequestParser(self)

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        closes = any(b"close" in value for name, value in self.headers if name == b"connection")
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in _OFFERS]
        if closes:
            lines.append(b"connection: close")
        return b"\r\n".join((*lines, b"", b""))

    def _is_offer(self) -> bool:
        return self.parser.should_upgrade()

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        if self.parser.get_method() == b"CONNECT":
            # The parser takes all that follows for another protocol, without an end.
            raise ValueError("this is no proxy")
        if self._is_offer():
            return
        super().on_headers_complete()
        self._unanswered.append(StreamWriter.attach(self.cycle))  # its task has not begun

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0  # what comes without a body may be trailers, which are bounded too
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        if self._is_offer():
            return
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._unanswered:
            del self._unanswered[0]
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _expect_reading(self) -> None:
        self._write_timer = self.loop.call_later(
            self._limits.write_seconds, self._unread, self.transport.get_write_buffer_size()
        )

    def _unread(self, before: int) -> None:
        """So long after so many bytes waited: whoever reads slowly is no one who reads nothing."""
        if self.transport.get_write_buffer_size() < before:
            self._expect_reading()
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an answer in the form of all others."""
        self._refuse(ApiError("bad_request", "this is not a valid HTTP request"))

    def _refuse(self, error: ApiError) -> None:
        """Answer what never becomes a request, unless another answer has begun; and end."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = error.body()
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%b"
                % (error.status, _REASONS[error.status], len(body), body)
            )
        self.transport.close()

    def _expect_headers(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self._limits.header_seconds, self._too_slow)

    def _forget_headers(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _stop_timers(self) -> None:
        self._forget_headers()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
