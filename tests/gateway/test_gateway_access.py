"""Who is let in, and what slow and silent clients can do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from gateway_process import GatewayProcess, wait_idle
from raw_http import connect, exchange, request, rest, status
from server_process import ServerProcess, run_launch

KEY = "correct-horse-battery-staple"
Start = Callable[..., GatewayProcess]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(KEY + "\n")
    return path


@pytest.fixture
def guarded(start_gateway: Start, key_file: Path) -> GatewayProcess:
    return start_gateway("--api-key-file", str(key_file), "--log-level", "debug")


def test_nothing_is_served_without_the_key(guarded: GatewayProcess) -> None:
    url = guarded.url
    paths = (
        "/v1/models",
        "//v1/models",
        "/v1/../v1/models",
        "/v1/%2e%2e/v1/models",
        "/%76%31/models",
        "/metrics",
        "/server_info",
        "/openapi.json",
        "/tokenize",
        "/version",
        "/health/",
        "/health/../v1/models",
        "/nothing",
        url + "/v1/models",
    )
    for path in paths:
        for method in ("GET", "HEAD", "OPTIONS", "POST"):
            assert status(exchange(url, request(path, method=method))) == 401, (method, path)
    for value in (KEY, f"Basic {KEY}", "Bearer", "Bearer ", f"Bearer {KEY}x", "Bearer wrong"):
        data = request("/v1/models", b"", f"Authorization: {value}")
        assert status(exchange(url, data)) == 401, value
    for value in (f"Bearer {KEY}", f"bearer  {KEY}"):
        data = request("/v1/models", b"", f"Authorization: {value}")
        assert status(exchange(url, data)) == 200, value
    assert status(exchange(url, request("/health"))) == 200
    assert status(exchange(url, request("/"))) == 200


def test_the_key_is_shown_nowhere(guarded: GatewayProcess) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=guarded.url, headers=headers) as client:
        found = client.get("/server_info").text
        body = {"prompt": "the secret prompt", "max_tokens": 2, "temperature": -1}
        client.post("/v1/completions", json=body)
        client.post("/v1/completions", json={**body, "temperature": 1})
    process = psutil.Process(guarded.process.pid)
    found += " ".join(process.cmdline()) + process.name() + str(process.environ())
    code, text = guarded.stop()
    assert code == 0
    assert KEY not in found + text
    assert "secret prompt" not in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--host", "nowhere.invalid"], "neither an IP address"),
        (["--api-key-file", ""], "--api-key-file is empty"),
        (["--api-key-file", "/nowhere"], "--api-key-file /nowhere cannot be read"),
    ],
)
def test_mistakes_of_pdv_gateway(options: list[str], words: str) -> None:
    command = [
        sys.executable,
        "-m",
        "gateway.main",
        "--connect",
        "tcp://127.0.0.1:1",
        "--port",
        "0",
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_mistakes_of_pdv_launch(url: str, tmp_path: Path) -> None:
    open_file = tmp_path / "key"
    open_file.write_text(KEY)
    open_file.chmod(0o644)
    taken = url.rpartition(":")[2]
    for options, words in (
        (["--http-host", "0.0.0.0"], "--api-key-file"),
        (["--api-key-file", str(open_file)], "chmod 600"),
        (["--http-port", taken], f"HTTP port {taken} cannot be used"),
    ):
        done = run_launch("--port", "0", "--http-port", "0", *options)
        assert (done.code, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert words in done.stderr


def test_only_loopback_is_listened_on(http_server: ServerProcess) -> None:
    process = psutil.Process(http_server.pids["gateway"])
    listening = [c for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_silent_and_slow_clients_delay_nobody_and_are_ended(start_gateway: Start) -> None:
    gateway = start_gateway("--body-timeout", "0.5", "--header-timeout", "1")
    url = gateway.url
    silent = [connect(url) for _ in range(300)]
    dripping = connect(url)
    dripping.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    half = connect(url)
    head, _, _ = request("/v1/completions", b'{"prompt":"x"}').partition(b"{")
    half.sendall(head + b"{")
    body = {"prompt": "x", "max_tokens": 4}
    assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
    assert status(rest(half)) == 408
    for connection in (*silent, dripping):
        assert rest(connection) == b""  # ended by the gateway
        connection.close()
    half.close()
    process = psutil.Process(gateway.process.pid)
    assert process.num_fds() < 100


def test_a_client_that_does_not_read_is_cut_and_others_go_on(
    start_gateway: Start, http_server: ServerProcess, http: httpx.Client
) -> None:
    gateway = start_gateway("--write-timeout", "1")
    before = http.get("/server_info").json()["counters"]["finished"]["abort"]
    # So much that the server is still at it when the client is cut.
    prompts = [[5 + number % 200] for number in range(192)]
    fields = {"max_tokens": 400, "ignore_eos": True, "stream": True, "logprobs": 20}
    deaf = connect(gateway.url, receive_buffer=4096)
    deaf.sendall(request("/v1/completions", json.dumps({"prompt": prompts, **fields}).encode()))
    body = {"prompt": "x", "max_tokens": 4}
    assert httpx.post(f"{gateway.url}/v1/completions", json=body, timeout=60).status_code == 200
    wait_idle(http)
    aborted = http.get("/server_info").json()["counters"]["finished"]["abort"]
    assert aborted > before
    deaf.close()


def test_environment_of_the_gateway_has_no_key(http_server: ServerProcess) -> None:
    assert KEY not in str(psutil.Process(http_server.pids["gateway"]).environ())
    assert os.environ.get("PDV_API_KEY_FILE") is None
