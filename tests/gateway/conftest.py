"""One server of the tiny pair with a gateway, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest
from gateway_process import GatewayProcess
from server_process import ServerProcess
from tiny_model import TinyPair


@pytest.fixture(scope="session")
def http_server(tiny_pair: TinyPair, run_place: object) -> Iterator[ServerProcess]:
    """A running server with ``--http-port 0``; do not stop it."""
    models = ["--model", str(tiny_pair.verifier), "--draft-model", str(tiny_pair.draft)]
    options = ["--device", "cpu", "--threads", "1", "--kv-cache-memory", "16M"]
    fixed = ["--num-speculative-tokens", "4", "--served-model-name", "tiny", "--http-port", "0"]
    with ServerProcess(*models, *options, *fixed) as process:
        yield process.wait_ready()
        process.stop()


@pytest.fixture(scope="session")
def url(http_server: ServerProcess) -> str:
    """Where its gateway is."""
    return str(http_server.ready["http"])


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    """A plain HTTP client of the gateway."""
    with httpx.Client(base_url=url, timeout=60.0) as client:
        yield client


@pytest.fixture
def start_gateway(http_server: ServerProcess) -> Iterator[Callable[..., GatewayProcess]]:
    """``start_gateway(*options)``: one more gateway of the same server, by ``pdv-gateway``."""
    with ExitStack() as stack:

        def start(*options: str, connect: str | None = None) -> GatewayProcess:
            gateway = GatewayProcess(connect or http_server.ipc, *options)
            return stack.enter_context(gateway).wait_ready()

        yield start
