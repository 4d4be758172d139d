"""The process ``metrics``: ``GET /metrics`` for Prometheus, by a client of the front."""

from __future__ import annotations

import logging
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pdv_mp.binding import CLIENT_SOCKET, resolve_host
from pdv_mp.client.client import ServerError, ServerUnreachable
from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.control import ControlClient
from pdv_mp.metrics.exposition import CONTENT_TYPE
from pdv_mp.metrics.scraper import Scraper
from pdv_mp.token_file import read_token
from pdv_mp.topology_rows import METRICS
from pdv_mp.wire.control import Ready, Stop
from pdv_mp.wire.protocol import ProtocolError

logger = logging.getLogger(__name__)

PATH = "/metrics"

MAX_CONNECTIONS = 32
"""Served at once; whoever comes beyond that is cut off."""

SILENCE_SECONDS = 5.0
"""A connection that sends nothing for so long is ended."""


class _Handler(BaseHTTPRequestHandler):
    """One request of one connection."""

    server: MetricsServer
    server_version = "pdv_mp"
    sys_version = ""
    timeout = SILENCE_SECONDS

    def do_GET(self) -> None:
        """Answer with the metrics."""
        if urlsplit(self.path).path != PATH:
            self._answer(HTTPStatus.NOT_FOUND, f"metrics are at {PATH}\n", "text/plain")
            return
        try:
            self._answer(HTTPStatus.OK, self.server.scraper.text(), CONTENT_TYPE)
        except (ServerUnreachable, ServerError, ProtocolError) as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n", "text/plain")

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, text: str, content_type: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are logged only for debugging."""
        logger.debug(format, *arguments)


class MetricsServer(ThreadingHTTPServer):
    """Serves a scraper's text; each connection has a thread and one request.

    Raises OSError if the address cannot be listened on.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: str, port: int, scraper: Scraper) -> None:
        self.scraper = scraper
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        """Bind without looking up a name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}{PATH}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, unless too many are served already."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection broke off, or worse."""
        logger.info("a scrape failed", exc_info=True)


def run_metrics(config: EngineConfig, run_dir: Path, control: ControlClient) -> None:
    """Serve metrics until the supervisor says stop. Raises ConfigError for a port that cannot be
    used."""
    options = config.server
    token = None if options.token_file is None else read_token(Path(options.token_file))
    scraper = Scraper(f"ipc://{run_dir / CLIENT_SOCKET}", token)
    address, port = resolve_host(options.metrics_host), options.metrics_port or 0
    try:
        server = MetricsServer(address, port, scraper)
    except OSError as error:
        raise ConfigError(
            f"--metrics-port {port} cannot be used on {address}: "
            f"{(error.strerror or str(error)).lower()}; choose another, or 0 for a free one"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()
    control.send(Ready(name=METRICS, facts={"endpoint": server.url}))
    while control.socket.poll():
        if isinstance(control.receive(), Stop):
            break
    server.shutdown()
    server.server_close()
