"""Clients that are killed or stopped while a real server streams to them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile.attacked import Attacked

CLIENT = Path(__file__).with_name("crowd_client.py")
CANCELLED_SECONDS = 2.0
"""How long docs/protocol.md lets the requests of a lost client live."""

StartClient = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_client() -> Iterator[StartClient]:
    """``start_client(endpoint, requests, max_tokens, logprobs)`` returns once some of its streams
    have begun."""
    started: list[subprocess.Popen[str]] = []

    def start(endpoint: str, requests: int, max_tokens: int, logprobs: int = -1) -> object:
        numbers = map(str, (requests, max_tokens, logprobs))
        process = subprocess.Popen(
            [sys.executable, str(CLIENT), endpoint, *numbers], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "streaming\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_freed(attacked: Attacked, since: float) -> None:
    attacked.wait_idle()
    assert time.monotonic() - since < CANCELLED_SECONDS + 1


@pytest.mark.parametrize("transport", ["endpoint", "ipc"])
def test_a_killed_client_leaves_nothing(
    attacked: Attacked, start_client: StartClient, transport: str
) -> None:
    process = start_client(getattr(attacked.server, transport), 8, 450)
    aborted = attacked.info()["counters"]["finished"]["abort"]
    since = time.monotonic()
    process.kill()
    wait_freed(attacked, since)
    assert 0 < attacked.info()["counters"]["finished"]["abort"] - aborted <= 8


def test_a_client_that_is_killed_while_it_waits(attacked: Attacked) -> None:
    """Nothing is sent to it but ``alive``, which finds that it has left."""
    busy = attacked.client()
    pools = attacked.info()["pools"]
    for number in range(4 * pools["slots"]):
        busy.send("generate", id=str(number), prompt_ids=[1], max_tokens=500, ignore_eos=True)
    waiting = attacked.client()
    waiting.send("generate", id="w", prompt_ids=[1], max_tokens=500)
    waiting.expect("accepted", id="w")
    before = attacked.info()["counters"]
    waiting.socket.close(linger=0)
    deadline = time.monotonic() + CANCELLED_SECONDS + 1
    while True:
        after = attacked.info()["counters"]
        if after["finished"]["abort"] > before["finished"]["abort"]:
            break
        assert time.monotonic() < deadline
    attacked.leave()


def test_a_client_that_is_killed_while_it_is_stopped(
    attacked: Attacked, start_client: StartClient
) -> None:
    process = start_client(attacked.server.ipc, 8, 450)
    process.send_signal(signal.SIGSTOP)
    attacked.check_served(count=60)
    since = time.monotonic()
    process.kill()
    wait_freed(attacked, since)


def test_a_stopped_client_holds_nobody_up_and_finds_its_errors(
    attacked: Attacked, start_client: StartClient
) -> None:
    process = start_client(attacked.server.ipc, 100, 500, 20)
    count = "slow_consumer"
    before = attacked.info()["counters"]["errors"][count]
    process.send_signal(signal.SIGSTOP)
    served = 0
    while (info := attacked.info())["counters"]["open_requests"] and served < 500:
        attacked.check_served()
        served += 1
    failed = info["counters"]["errors"][count] - before
    assert served
    process.send_signal(signal.SIGCONT)
    assert process.stdout is not None
    seen = json.loads(process.stdout.readline())
    assert process.wait(20) == 0
    ends = [item["last"] for item in seen.values()]
    assert len(ends) == 100
    assert set(ends) <= {"length", count}
    assert ends.count(count) == failed > 0
