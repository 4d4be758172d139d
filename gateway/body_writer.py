"""Parts of a streamed body, written past ASGI."""

from __future__ import annotations

from uvicorn.protocols.http.h11_impl import RequestResponseCycle

EXTENSION = "pdv.body_writer"
"""The key of a request's :class:`BodyWriter` among the extensions of its ASGI scope."""


class BodyWriter:
    """Writes a part of a body that has begun, without a coroutine. Through ASGI each part passes
    the ``send`` of every layer, which costs several times what the part itself does."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._is_chunked = cycle.scope["http_version"] == "1.1"

    @property
    def ready(self) -> bool:
        """Whether a part may be written now. If not, ``send`` waits until one may, or drops it for
        a client that has gone."""
        cycle = self._cycle
        return self._is_chunked and not (cycle.flow.write_paused or cycle.disconnected)

    def write(self, data: bytes) -> None:
        """Write a part, which is not empty and not the last, of a body without a length."""
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
