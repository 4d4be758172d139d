"""How streams are written: their framing, and at once."""

from __future__ import annotations

import asyncio
import json
import socket

import httpx
from gateway_process import events
from raw_http import exchange, request

from gateway.listening import listen

COMPLETIONS = "/v1/completions"
BODY = {"prompt": "def add(", "max_tokens": 48, "ignore_eos": True, "temperature": 0}


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


def test_a_stream_has_every_token_whatever_the_version_of_http(
    http: httpx.Client, url: str
) -> None:
    whole = http.post(COMPLETIONS, json=BODY).json()["choices"][0]["text"]
    data = request(COMPLETIONS, json.dumps({**BODY, "stream": True}).encode())
    for version, is_chunked in ((b"HTTP/1.1", True), (b"HTTP/1.0", False)):
        answer = exchange(url, data.replace(b"HTTP/1.1", version))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert (b"transfer-encoding: chunked" in head.lower()) is is_chunked
        found = events((joined(body) if is_chunked else body).decode())
        assert len(found) > 2
        assert "".join(event["choices"][0]["text"] for event in found) == whole


def joined(body: bytes) -> bytes:
    """A body without its chunks' sizes."""
    found = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        count = int(size, 16)
        if not count:
            assert rest == b"\r\n"
            return found
        assert rest[count : count + 2] == b"\r\n"
        found, body = found + rest[:count], rest[count + 2 :]


def test_continuous_usage_counts_what_was_sent(http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**BODY, "stream": True, "stream_options": options}
    *found, last = events(http.post(COMPLETIONS, json=body).text)
    counts = [event["usage"]["completion_tokens"] for event in found]
    if not found[-1]["choices"][0]["text"]:
        # The end may come by itself, after the last tokens.
        assert found[-1]["choices"][0]["finish_reason"] == "length"
        assert counts.pop() == counts[-1]
    assert counts == sorted(set(counts))
    assert counts[-1] == last["usage"]["completion_tokens"] == 48
