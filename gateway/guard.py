"""What every request must pass before anything else looks at it: key, origin, size and time."""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import sys
import time
from collections.abc import Awaitable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.answers import respond
from gateway.errors import ApiError
from gateway.stream_writer import StreamWriter

OPEN_PATHS = frozenset(("/health", "/"))
"""Served without a key: a sign of life, and the page, which asks for one. Nothing else is, whatever
its path looks like."""

MAX_HEADERS = 200
MAX_HEADER_BYTES = 64 * 1024

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_body_bytes`` of a request; ``body_seconds`` that it may take to arrive.

    ``header_seconds``: for the headers, after the connection or their first byte.
    ``write_seconds``: a client that reads nothing for this long while something waits for it is
    disconnected.
    """

    max_body_bytes: int = 4 * 1024 * 1024
    body_seconds: float = 30.0
    header_seconds: float = 20.0
    write_seconds: float = 60.0


class Refused(HTTPException):
    """A limit was reached while the body was read. An HTTPException, since frameworks hide any
    other that comes out of reading a body."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.status, error.message)
        self.error = error


class Guard:
    """ASGI middleware around the application. ``api_key``: None serves everyone."""

    def __init__(self, app: ASGIApp, limits: Limits, api_key: str | None) -> None:
        self._app = app
        self._limits = limits
        self._api_key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        headers = _Headers(scope["headers"])
        request_id = headers.text(b"x-request-id")
        if _REQUEST_ID.fullmatch(request_id) is None:
            request_id = secrets.token_hex(16)
        header = (b"x-request-id", request_id.encode())

        writer = StreamWriter.of(scope)
        writer.headers.append(header)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        try:
            self._check(scope, headers)
        except ApiError as error:
            await respond(named, error)
            return
        try:
            await self._app(scope, _Body(receive, self._limits).receive, named)
        except Exception:
            if not writer.begun:
                message = "a fault in the gateway; its log has more"
                await respond(named, ApiError("internal", message))
            raise  # for the log

    def _check(self, scope: Scope, headers: _Headers) -> None:
        if headers.num_hosts != 1 and (headers.num_hosts or scope["http_version"] == "1.1"):
            raise ApiError("bad_request", "a request must have one Host header")
        if len(scope["headers"]) > MAX_HEADERS or headers.size > MAX_HEADER_BYTES:
            raise headers_too_large()
        if headers.raw(b"transfer-encoding") and headers.raw(b"content-length"):
            message = "Content-Length and Transfer-Encoding exclude each other"
            raise ApiError("bad_request", message)
        if self._api_key is not None and scope["path"] not in OPEN_PATHS:
            scheme, _, key = headers.raw(b"authorization").partition(b" ")
            # The key is compared in any case, so that time tells nothing.
            same = hmac.compare_digest(key.strip(), self._api_key)
            if not same or scheme.lower() != b"bearer":
                raise ApiError(
                    "unauthenticated", "a valid key is needed: Authorization: Bearer KEY"
                )
        origin = headers.raw(b"origin")
        if origin and origin.rpartition(b"//")[2] != headers.raw(b"host"):
            raise ApiError("forbidden", "requests from other sites' pages are not served")
        kind = headers.raw(b"content-type").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            # Also because another site's page may send anything else without asking first.
            message = "a body must be JSON: send Content-Type: application/json"
            raise ApiError("bad_request", message)
        length = headers.raw(b"content-length")
        if length.isdigit() and int(length[:20]) > self._limits.max_body_bytes:
            raise _too_large(self._limits)


class _Headers:
    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._headers = dict(reversed(headers))
        self.size = sum(len(name) + len(value) for name, value in headers)
        self.num_hosts = sum(name == b"host" for name, _ in headers)

    def raw(self, name: bytes) -> bytes:
        return self._headers.get(name, b"")

    def text(self, name: bytes) -> str:
        return self.raw(name).decode("latin-1")


class _Body:
    """Reads one request's body within the limits; what comes after it is passed on."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._size = 0
        self._deadline = time.monotonic() + limits.body_seconds
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            message = await _by(self._deadline, self._receive())
        except asyncio.TimeoutError:
            seconds = f"{self._limits.body_seconds:g}"
            error = ApiError("timeout", f"the body did not arrive within {seconds} seconds")
            raise Refused(error) from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            if self._size > self._limits.max_body_bytes:
                raise Refused(_too_large(self._limits))
            self._complete = not message.get("more_body", False)
        return message


async def _by(deadline: float, work: Awaitable[Message]) -> Message:
    """What is awaited. Raises asyncio.TimeoutError when ``time.monotonic`` is past the deadline."""
    left = max(0.0, deadline - time.monotonic())
    if sys.version_info >= (3, 11):
        async with asyncio.timeout(left):  # no task is made for it
            return await work
    return await asyncio.wait_for(work, left)


def headers_too_large() -> ApiError:
    """For a request whose headers are over a limit."""
    return ApiError("headers_too_large", f"headers are over {MAX_HEADER_BYTES} bytes")


def _too_large(limits: Limits) -> ApiError:
    return ApiError("body_too_large", f"the body is over {limits.max_body_bytes} bytes")
