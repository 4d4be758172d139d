"""The gateway's listening end, by itself."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

from gateway.guard import Limits
from gateway.server import HttpServer
from gateway.service import GatewayService

BODY = b"x" * (32 << 20)
"""More than the system's buffers hold."""


async def answer_at_once(scope: Any, receive: Any, send: Any) -> None:
    length = (b"content-length", str(len(BODY)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": BODY})


def test_what_has_been_answered_is_written_to_its_end_before_the_gateway_leaves() -> None:
    async def run() -> bytes:
        service = cast(GatewayService, SimpleNamespace(draining=False))
        listener = socket.create_server(("127.0.0.1", 0))
        server = HttpServer(service, listener, Limits(), None)
        server._config.loaded_app = answer_at_once
        await server.start()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.0\r\nHost: gateway\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        while server._state.tasks:  # the answer's task ends when all is in the buffer
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(server.close())
        found = await reader.read()
        await closing
        writer.close()
        return found

    assert asyncio.run(asyncio.wait_for(run(), 60)) == BODY
