"""Disconnects, full servers, deaths and shutdowns, as HTTP clients see them."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest
from gateway_process import GatewayProcess, events, wait_idle
from raw_http import connect, request, rest, status
from server_process import ServerProcess

from pdv_mp.client.client import Client

COMPLETIONS = "/v1/completions"
LONG = {"max_tokens": 480, "ignore_eos": True, "temperature": 0, "stream": True}
Start = Callable[..., ServerProcess]


def received(connection: socket.socket, mark: bytes) -> bytes:
    """All that comes until the mark has come."""
    found = b""
    while mark not in found:
        part = connection.recv(1024)
        assert part, found
        found += part
    return found


def open_stream(url: str, **fields: object) -> socket.socket:
    """A stream whose first event has come."""
    connection = connect(url)
    body = json.dumps({"prompt": "def add(", **LONG, **fields}).encode()
    connection.sendall(request(COMPLETIONS, body))
    found = received(connection, b"data: ")
    assert status(found) == 200, found
    return connection


@pytest.fixture
def stopped_worker(http_server: ServerProcess) -> Iterator[Callable[[], None]]:
    """Stops the worker, so that what is open stays open; it goes on at the end."""
    pid = http_server.pids["worker-0"]
    yield lambda: os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_cancels(http: httpx.Client, url: str, stream: bool) -> None:
    before = http.get("/server_info").json()["counters"]["finished"]["abort"]
    prompts = [[7 + number] for number in range(64)]
    if stream:
        open_stream(url, prompt=prompts).close()
    else:
        connection = connect(url)
        body = {**LONG, "stream": False, "prompt": prompts}
        connection.sendall(request(COMPLETIONS, json.dumps(body).encode()))
        while not http.get("/server_info").json()["counters"]["open_requests"]:
            pass
        connection.close()
    wait_idle(http)
    assert http.get("/server_info").json()["counters"]["finished"]["abort"] > before
    assert http.get("/server_info").json()["gateway"]["open_calls"] == 0


def test_a_gateway_that_is_told_to_end_finishes_its_streams_first(
    http_server: ServerProcess,
    start_gateway: Callable[..., GatewayProcess],
    stopped_worker: Callable[[], None],
) -> None:
    gateway = start_gateway()
    with open_stream(gateway.url) as connection:
        stopped_worker()
        gateway.process.send_signal(signal.SIGTERM)
        while "draining" not in gateway.read_line():
            pass
        refused = httpx.post(gateway.url + COMPLETIONS, json={"prompt": "x"}, timeout=60)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(gateway.url + "/health").status_code == 503
        os.kill(http_server.pids["worker-0"], signal.SIGCONT)
        assert rest(connection).rstrip().endswith(b"data: [DONE]\n\n\r\n0")
    assert gateway.process.wait(60) == 0


@pytest.mark.slow
def test_the_second_signal_ends_open_streams(
    start_gateway: Callable[..., GatewayProcess], stopped_worker: Callable[[], None]
) -> None:
    gateway = start_gateway()
    with open_stream(gateway.url) as connection:
        stopped_worker()
        gateway.process.send_signal(signal.SIGTERM)
        while "draining" not in gateway.read_line():
            pass
        gateway.process.send_signal(signal.SIGTERM)
        rest(connection)
    assert gateway.process.wait(60) == 0


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_that_has_to_wait_gives_signs_of_life(
    url: str, stopped_worker: Callable[[], None], echo: bool
) -> None:
    stopped_worker()
    with connect(url) as connection:
        fields = {"prompt": "x", "echo": echo, **LONG}
        connection.sendall(request(COMPLETIONS, json.dumps(fields).encode()))
        found = received(connection, b": waiting\n\n")
    assert status(found) == 200
    assert b"data: " not in found


def test_a_stream_whose_prompt_waits_for_a_tokenizer_gives_signs_of_life(
    start_server: Start,
) -> None:
    server = start_server("--http-port", "0", "--topology", "pd", "--lane-timeout", "0")
    url, tokenizer = server.ready["http"], server.pids["tokenizer-0"]
    body = {"messages": [{"role": "user", "content": "add"}], **LONG, "max_tokens": None}
    with httpx.Client(base_url=url, timeout=60) as http:
        os.kill(tokenizer, signal.SIGSTOP)
        try:
            with connect(url) as connection:
                connection.sendall(request("/v1/chat/completions", json.dumps(body).encode()))
                found = received(connection, b": waiting\n\n")
                assert status(found) == 200
                assert http.get("/server_info").json()["gateway"]["open_calls"] == 1
            # The client has gone, which is noticed although nothing has been tokenized.
            while http.get("/server_info").json()["gateway"]["open_calls"]:
                pass
        finally:
            os.kill(tokenizer, signal.SIGCONT)
        answer = http.post("/v1/chat/completions", json={**body, "max_tokens": 2})
        assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.slow
def test_nobody_behind_the_gateway(start_gateway: Callable[..., GatewayProcess]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    gateway = start_gateway(connect=endpoint)
    answer = httpx.get(f"{gateway.url}/health", timeout=60)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "unreachable"


def test_deaths_and_the_end(start_server: Start) -> None:
    """The gateway is killed: it serves the same port again, and others notice nothing. A worker is
    killed: its streams go on. The server is told to end: they finish. It dies: they are told."""
    server = start_server("--http-port", "0", "--max-restarts", "2", "--lane-timeout", "0")
    url, gateway, worker = server.ready["http"], server.pids["gateway"], server.pids["worker-0"]
    body = {"prompt": "def add(", **LONG}
    expected = httpx.post(url + COMPLETIONS, json=body, timeout=60).text
    with Client(server.ipc) as client:
        stream = client.generate("def add(", max_tokens=480, ignore_eos=True)
        next(stream)
        os.kill(worker, signal.SIGSTOP)
        os.kill(gateway, signal.SIGKILL)
        with connect(url) as waiting:  # the socket is the launcher's: nobody is refused
            waiting.sendall(request("/v1/models"))
            assert status(rest(waiting)) == 200
        os.kill(worker, signal.SIGCONT)
        assert len(stream.result().ids) == 480
        assert client.info()["restarts"] == {"worker-0": 0, "gateway": 1}
    connection = open_stream(url)
    os.kill(worker, signal.SIGKILL)
    with connection:
        tail = rest(connection)
    assert b'"error"' not in tail
    again = httpx.post(url + COMPLETIONS, json=body, timeout=60).text
    assert texts(again) == texts(expected)
    with connect(url) as last:
        last.sendall(request(COMPLETIONS, json.dumps(body).encode()))
        begun = last.recv(64)
        server.process.send_signal(signal.SIGTERM)
        text = dechunked(begun + rest(last)).decode()
    assert texts(text) == texts(expected)
    done = server.wait()
    assert done.code == 0, done.stderr
    assert any("gateway was killed by SIGKILL; it is started again" in m for m in done.messages)


def test_a_full_server_and_a_death_for_good(start_server: Start) -> None:
    options = ["--http-port", "0", "--max-open-requests", "4", "--lane-timeout", "0"]
    server = start_server(*options, "--max-restarts", "0")
    url, worker = server.ready["http"], server.pids["worker-0"]
    with open_stream(url, prompt=[[5], [6], [7], [8]]) as connection:
        os.kill(worker, signal.SIGSTOP)
        for stream in (False, True):
            body = {"prompt": "x", "stream": stream}
            answer = httpx.post(url + COMPLETIONS, json=body, timeout=60)
            assert answer.status_code == 429
            assert answer.json()["error"]["code"] == "queue_full"
            assert answer.json()["error"]["type"] == "rate_limit_error"
            assert int(answer.headers["retry-after"]) >= 1
        os.kill(worker, signal.SIGKILL)
        tail = rest(connection).decode()
    assert '"code": "lane_failed"' in tail
    assert "data: [DONE]" in tail
    assert server.wait().code == 4


@pytest.mark.slow
def test_a_server_that_is_replaced_is_found_again(
    start_server: Start, start_gateway: Callable[..., GatewayProcess]
) -> None:
    first = start_server()
    endpoint = first.endpoint
    gateway = start_gateway(connect=endpoint)
    body = {"prompt": "def add(", "max_tokens": 8, "temperature": 0, "logprobs": 0}

    def text() -> str:
        answer = httpx.post(gateway.url + COMPLETIONS, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    expected = text()
    assert first.stop().code == 0
    start_server(port=int(endpoint.rpartition(":")[2]))
    assert text() == expected


def texts(stream: str) -> str:
    """The text of a stream."""
    return "".join(event["choices"][0]["text"] for event in events(stream))


def dechunked(answer: bytes) -> bytes:
    """The body of an answer in chunks."""
    _, _, left = answer.partition(b"\r\n\r\n")
    found = b""
    while left:
        size, _, left = left.partition(b"\r\n")
        length = int(size, 16)
        found += left[:length]
        left = left[length + 2 :]
    return found
