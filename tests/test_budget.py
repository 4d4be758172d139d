"""A process that dies once more than ``--max-restarts`` allows ends the server, and says so."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable

import pytest
from server_load import BusyLoad, Message, load, process_pid
from server_process import ServerProcess

Start = Callable[..., ServerProcess]

LONG: list[Message] = [
    {"prompt_ids": [20 + index, 21], "max_tokens": 400, "ignore_eos": True} for index in range(16)
]


@pytest.mark.parametrize(
    ("victim", "most"),
    [
        ("draft-0", 0),
        pytest.param("prefill-0", 1, marks=pytest.mark.slow),
        pytest.param("pools", 0, marks=pytest.mark.slow),
        pytest.param("pools", 1, marks=pytest.mark.slow),
        pytest.param("verify-0", 0, marks=pytest.mark.slow),
        ("verify-0", 1),
    ],
)
def test_a_used_up_budget_ends_a_split_server(start_server: Start, victim: str, most: int) -> None:
    server = start_server("--topology", "pdv", "--max-restarts", str(most))
    with load(server) as client:
        busy = BusyLoad(client, LONG, least_open=8)
        for _ in range(most + 1):
            busy.until_tokens(20)
            before = set(client.last)
            os.kill(process_pid(server, victim), signal.SIGKILL)
        killed = time.monotonic()
        client.until(lambda: client.num_open == 0)
        assert time.monotonic() - killed < 10.0, "clients must be told at once"
        ends = [last for id, last in client.last.items() if id not in before]
        failed = [last for last in ends if last["type"] == "error"]
        # What was in the sockets when it died may have been the end of a request.
        assert len(failed) >= len(ends) - len(LONG) / 2
        assert {last["code"] for last in failed} == {"lane_failed"}
        assert all(last["retryable"] for last in failed)
        assert {last["message"] for last in failed} == {f"process {victim} died"}
    done = server.wait()
    assert done.code == 4
    ending = f"{victim} was killed by SIGKILL"
    if most:
        ending += r"( before it was ready)?, after 1 restarts within 600 s"
    assert any(re.fullmatch(ending, line) for line in done.messages), done.stderr
