"""What connections do besides one request after another."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
from raw_http import connect, exchange, request, rest, status

COMPLETIONS = "/v1/completions"
FIELDS = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
WAIT_SECONDS = 30.0


def completion(**fields: object) -> bytes:
    return json.dumps({"prompt": "hello", **FIELDS, **fields}).encode()


def kept(data: bytes) -> bytes:
    """The request without the wish to close its connection."""
    return data.replace(b"Connection: close\r\n", b"")


def test_a_client_that_would_rather_speak_http2_is_served(url: str) -> None:
    """Java's own client asks for it with every first request."""
    upgrade = ("Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB")
    data = request(COMPLETIONS, completion(), *upgrade)
    data = data.replace(b"Connection: close", b"Connection: close, Upgrade, HTTP2-Settings")
    answer = exchange(url, data)
    assert status(answer) == 200
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 8


def test_requests_that_come_at_once_are_answered_in_their_order(url: str) -> None:
    stream = kept(request(COMPLETIONS, completion(stream=True)))
    whole = request(COMPLETIONS, completion())
    answer = exchange(url, stream + stream + whole)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.count(b"data: [DONE]") == 2
    last = answer.rpartition(b"HTTP/1.1 200 OK")[2]
    assert json.loads(last.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 8


def test_a_hangup_after_a_long_body_is_noticed(http: httpx.Client, url: str) -> None:
    """It stopped the reading of the connection, and nobody writes before the answer is whole."""

    def counters() -> dict[str, Any]:
        found: dict[str, Any] = http.get("/server_info").json()["counters"]
        return found

    aborted = counters()["finished"]["abort"]
    fields = {"max_tokens": 400, "n": 32, "temperature": 1, "user": "x" * 200_000}
    data = request(COMPLETIONS, completion(**fields), "Expect: 100-continue")
    head, _, body = data.partition(b"\r\n\r\n")
    with connect(url) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        wait_until(lambda: counters()["open_requests"] > 0, "the request never began")
    wait_until(
        lambda: counters()["finished"]["abort"] > aborted,
        "the request of a client that has gone goes on",
    )


def wait_until(happened: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.005)


def test_trailers_and_extensions_of_chunks_are_bounded(url: str) -> None:
    head = request(COMPLETIONS, b"x")[:-1].replace(b"Content-Length: 1\r\n", b"")
    head = head[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
    for endless in (b"1;" + b"x" * 1000, b"0\r\n" + b"Xy: z\r\n" * 100):
        with connect(url) as connection:
            connection.sendall(head + endless)
            for _ in range(10_000):
                try:
                    connection.sendall(endless[3:] * 10)
                except OSError:
                    break
            else:
                raise AssertionError("nobody stopped it")
            answer = rest(connection)
        assert not answer or 400 <= status(answer) < 500
