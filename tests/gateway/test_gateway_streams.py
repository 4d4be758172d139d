"""How streams are written: at once."""

from __future__ import annotations

import asyncio
import socket

from gateway.listening import listen


def test_small_writes_do_not_wait_for_acknowledgements() -> None:
    async def accepted_nodelay() -> int:
        made: asyncio.Queue[asyncio.Transport] = asyncio.Queue()

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                made.put_nowait(transport)

        with listen("127.0.0.1", 0) as listener:
            server = await asyncio.get_running_loop().create_server(Accepted, sock=listener)
            async with server:
                with socket.create_connection(listener.getsockname()):
                    transport = await made.get()
                    found: int = transport.get_extra_info("socket").getsockopt(
                        socket.IPPROTO_TCP, socket.TCP_NODELAY
                    )
                    transport.abort()
        return found

    assert asyncio.run(accepted_nodelay())
