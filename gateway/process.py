"""The gateway as a process of ``pdv-launch``: ``python -m gateway.process gateway …``.

The launcher has bound the listening socket and hands it down, so that a gateway that is started
again serves the same port, and clients that connect meanwhile wait instead of being refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.backend import Backend
from gateway.guard import Limits
from gateway.keys import read_api_key
from gateway.listening import LISTENER_FD
from gateway.server import HttpServer, allow_many_connections
from gateway.service import GatewayService
from pdv_mp.binding import CLIENT_SOCKET
from pdv_mp.client.client_core import ServerError, ServerUnreachable
from pdv_mp.config import EngineConfig
from pdv_mp.control import ControlClient
from pdv_mp.process import CONFIG_FILE
from pdv_mp.process import main as run_process
from pdv_mp.token_file import read_token, token_path
from pdv_mp.wire import control as control_wire

RETRY_SECONDS = 0.1


def run_gateway(
    name: str, run_dir: Path, generations: Mapping[str, int], control: ControlClient
) -> None:
    """Serve HTTP until the supervisor says stop. Raises ConfigError."""
    config = EngineConfig.from_json((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    logging.basicConfig(
        level=config.server.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    allow_many_connections()
    http, server = config.http, config.server
    key = None if http.api_key_file is None else read_api_key(http.api_key_file)
    token = None if server.token_file is None else read_token(token_path(server.token_file))
    listener = socket.socket(fileno=int(os.environ[LISTENER_FD]))
    limits = Limits(http.http_max_body_bytes, http.http_body_timeout)
    asyncio.run(_Gateway(control, run_dir, token).run(listener, limits, key))


class _Gateway:
    """The service between the supervisor's messages."""

    def __init__(self, control: ControlClient, run_dir: Path, token: str | None) -> None:
        self._control = control
        self._service = GatewayService(Backend(f"ipc://{run_dir / CLIENT_SOCKET}", token))
        self._stopped = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self._server: HttpServer | None = None

    async def run(self, listener: socket.socket, limits: Limits, key: str | None) -> None:
        loop = asyncio.get_running_loop()
        descriptor = self._control.socket.fileno()
        loop.add_reader(descriptor, self._obey_all)
        self._obey_all()
        try:
            if not await self._wait_for_server():
                return
            self._server = HttpServer(self._service, listener, limits, key)
            await self._server.start()
            facts = {"pid": os.getpid()}
            self._control.send(control_wire.Ready(name="gateway", facts=facts))
            self._obey_all()
            await self._stopped.wait()
            await self._server.close()
        finally:
            loop.remove_reader(descriptor)
            if self._draining is not None:
                self._draining.cancel()
            self._service.close()

    async def _wait_for_server(self) -> bool:
        """Until the front answers; False if the supervisor stops the start."""
        while not self._stopped.is_set():
            asking = asyncio.ensure_future(self._service.cards.get())
            stopping = asyncio.ensure_future(self._stopped.wait())
            await asyncio.wait((asking, stopping), return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not asking.done():
                asking.cancel()
                return False
            try:
                asking.result()
            except ServerUnreachable:
                continue
            except ServerError as error:
                logging.getLogger(__name__).warning("the server answered %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            return True
        return False

    def _obey_all(self) -> None:
        """All messages of the supervisor that have come; until there is none, since the descriptor
        signals changes only."""
        while (order := self._control.receive()) is not None:
            if isinstance(order, control_wire.Stop):
                self._stopped.set()
            elif isinstance(order, (control_wire.Drain, control_wire.Abort, control_wire.Lost)):
                self._service.draining = True
                if self._draining is None:
                    self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self._service.idle()
        self._control.send(control_wire.Drained())
        self._obey_all()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the process; returns its exit status."""
    return run_process(arguments, run_gateway)


if __name__ == "__main__":
    _status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status)
