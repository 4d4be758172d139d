"""Listening, serving and draining: uvicorn's protocol on our own loop.

``uvicorn.Server`` is not used: it takes over signals, which the supervisor owns, wakes ten times a
second for ever, and knows no order of leaving.
"""

from __future__ import annotations

import asyncio
import resource
import socket

from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.app import make_app
from gateway.guard import Guard, Limits
from gateway.http_connection import HttpConnection
from gateway.listening import BACKLOG
from gateway.service import GatewayService

KEEP_ALIVE_SECONDS = 30
MAX_OPEN_FILES = 65_536
CLOSE_SECONDS = 2.0


def allow_many_connections() -> None:
    """Raise the limit of open files as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class HttpServer:
    """Serves one listening socket until it is closed."""

    def __init__(
        self,
        service: GatewayService,
        listener: socket.socket,
        limits: Limits,
        api_key: str | None,
    ) -> None:
        self._service = service
        self._listener = listener
        self._limits = limits
        self._state = ServerState()
        self._config = Config(
            Guard(make_app(service), limits, api_key),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self._config.load()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to accept connections."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: HttpConnection(self._limits, self._config, self._state, {}),
            sock=self._listener,
            backlog=BACKLOG,
        )

    async def drain(self) -> None:
        """Refuse new calls, and wait until the open ones have ended."""
        self._service.draining = True
        await self._service.idle()

    async def close(self) -> None:
        """Leave: what is still written gets a moment, then every connection is cut."""
        self._service.draining = True
        if self._server is not None:
            self._server.close()
        connections = list(self._state.connections)
        for connection in connections:
            connection.shutdown()
        # A connection is lost when all that was written has left.
        written = [each.lost for each in connections if isinstance(each, HttpConnection)]
        if written or self._state.tasks:
            await asyncio.wait([*self._state.tasks, *written], timeout=CLOSE_SECONDS)
        for connection in list(self._state.connections):
            connection.transport.abort()
        rest = [task for task in self._state.tasks if not task.done()]
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=CLOSE_SECONDS)
