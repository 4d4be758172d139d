"""Asks the front for ``info`` on behalf of scrapes, at most once a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from pdv_mp.client.client import Client, ServerError, ServerUnreachable
from pdv_mp.metrics.exposition import exposition
from pdv_mp.wire.protocol import ProtocolError

SECONDS_VALID = 1.0
"""However many scrape however often, the front is asked no more often than this."""

ANSWER_SECONDS = 5.0
"""How long a scrape waits for the front."""


class Scraper:
    """The metrics of one server as text; for any number of threads.

    ``endpoint``: of the front; ``token``: what it asks for, if it does. The connection is made at
    the first question and comes back by itself.
    """

    def __init__(self, endpoint: str, token: str | None = None) -> None:
        self._lock = threading.Lock()
        self._client = Client(
            endpoint, timeout=ANSWER_SECONDS, connect_timeout=ANSWER_SECONDS, token=token
        )
        self._asked = 0.0
        self._text = ""
        self._error: Exception | None = None

    def text(self) -> str:
        """The metrics, at most a second old. Raises ServerUnreachable where the front does not
        answer, ServerError where it refuses to, ProtocolError for an answer that is none."""
        with self._lock:
            now = time.monotonic()
            if not self._asked or now >= self._asked + SECONDS_VALID:
                self._ask()
            if self._error is not None:
                raise self._error
            return self._text

    def _ask(self) -> None:
        self._error = None
        try:
            info: Mapping[str, Any] = self._client.info(batches=0)
            self._text = exposition(info)
        except (ServerUnreachable, ServerError, ProtocolError) as error:
            self._error = error
        self._asked = time.monotonic()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._client.close()
