"""The log of accepted requests (``--log-requests``): the only place where prompts are logged."""

from __future__ import annotations

import logging

from pdv_mp.front.journal import Request
from pdv_mp.wire.client_messages import Generate

logger = logging.getLogger(__name__)

PIECE_CHARACTERS = 800
"""Characters of a request in one record. The launcher cuts lines at 4096 bytes, and one character
can take four."""


class RequestLog:
    """Writes each accepted request, cut into records, at any log level; or nothing at all."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        if enabled:
            logger.setLevel(logging.INFO)

    def accepted(self, request: Request, message: Generate) -> None:
        """Log an accepted request: id, sizes, parameters and prompt, control characters escaped."""
        if not self._enabled:
            return
        prompt = request.prompt_ids.tolist() if message.prompt is None else message.prompt
        text = (
            f"id {request.id!r}, connection {request.connection.number}, "
            f"{len(request.prompt_ids)} prompt tokens, stream {request.stream}, "
            f"{request.params}, prompt {prompt!r}"
        )
        pieces = [
            text[start : start + PIECE_CHARACTERS]
            for start in range(0, len(text), PIECE_CHARACTERS)
        ]
        for number, piece in enumerate(pieces, 1):
            logger.info("request %d (%d/%d): %s", request.key, number, len(pieces), piece)
