"""Errors as HTTP answers, in the form that clients of the OpenAI API read."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pdv_mp.client.client_core import ServerError, ServerUnreachable
from pdv_mp.sampling_params import ParameterError

STATUS: Mapping[str, int] = {
    "bad_request": 400,
    "context_length_exceeded": 400,
    "too_large": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "body_too_large": 413,
    "headers_too_large": 431,
    "queue_full": 429,
    "internal": 500,
    "unsupported_version": 500,
    "draining": 503,
    "lane_failed": 503,
    "slow_consumer": 503,
    "unreachable": 503,
}
"""HTTP status of every code: those of docs/protocol.md, and those that only exist here."""

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "service_unavailable_error",
}

RETRY_AFTER_SECONDS = 1
"""What a client that finds us unable to serve is told to wait, where the server names no time."""


class ApiError(Exception):
    """A request cannot be served. ``code`` is a key of :data:`STATUS`; ``param`` is the field
    of the request that is wrong; ``retry_after``: seconds, for a code worth another try."""

    def __init__(
        self, code: str, message: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS.get(self.code, 500)

    def body(self) -> bytes:
        """The answer's body: JSON in ASCII, whatever the message holds."""
        fields = {
            "message": self.message,
            "type": _TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code,
        }
        return json.dumps({"error": fields}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The answer's headers."""
        found = [(b"content-type", b"application/json"), *_authenticate(self.status)]
        if self.status in (429, 503):
            seconds = RETRY_AFTER_SECONDS if self.retry_after is None else self.retry_after
            found.append((b"retry-after", str(seconds).encode()))
        if self.status in (408, 413, 431):
            found.append((b"connection", b"close"))
        return found


def _authenticate(status: int) -> list[tuple[bytes, bytes]]:
    return [(b"www-authenticate", b"Bearer")] if status == 401 else []


def api_error(error: Exception) -> ApiError:
    """What went wrong between us and the server, as our client should hear it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ParameterError):
        return ApiError("bad_request", str(error), str(error).partition(" ")[0])
    if isinstance(error, ServerUnreachable):
        return ApiError("unreachable", "the server behind this gateway does not answer")
    if not isinstance(error, ServerError):
        raise error
    if error.code == "unauthenticated":
        return ApiError("unreachable", "the server behind this gateway refuses the gateway's token")
    seconds = None if error.retry_after_ms is None else max(1, -(-error.retry_after_ms // 1000))
    return ApiError(error.code, error.message, retry_after=seconds)
