"""Every topology as real processes: the same tokens, whoever is killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import tiny_arguments
from server_load import (
    Message,
    check_nothing_leaks,
    load,
    outputs,
    process_pid,
    random_requests,
)
from server_process import ServerProcess
from tiny_model import TinyPair

Start = Callable[..., ServerProcess]

PROCESSES = {
    "baseline": ["pools", "worker-0", "worker-1", "worker-2", "worker-3"],
    "pd": ["pools", "prefill-0", "decode-0"],
    "pdv": ["pools", "prefill-0", "draft-0", "verify-0"],
}


@pytest.fixture(scope="module")
def requests() -> list[Message]:
    return random_requests(48, seed=8)


@pytest.fixture(scope="module")
def wanted(
    tiny_pair: TinyPair, run_place: object, requests: list[Message]
) -> list[tuple[Any, ...]]:
    """What a server of one process answers, with nothing speculated."""
    plain = [{**fields, "speculate": False} for fields in requests]
    with ServerProcess(*tiny_arguments(tiny_pair)) as server:
        answers = outputs(server.wait_ready(), plain)
        server.stop()
    return answers


@pytest.mark.parametrize("topology", PROCESSES)
def test_every_topology_gives_the_same_tokens(
    topology: str, start_server: Start, requests: list[Message], wanted: list[tuple[Any, ...]]
) -> None:
    server = start_server("--topology", topology, "--check-invariants", "--max-num-seqs", "8")
    assert set(server.pids) == {"launcher", "front", *PROCESSES[topology]}
    assert outputs(server, requests) == wanted
    with load(server) as client:
        check_nothing_leaks(client, 0)
        counters = client.info()["counters"]
        assert counters["drafted_tokens"] > 100
    assert server.stop().code == 0


@pytest.mark.parametrize(
    ("topology", "kills"), [("pdv", 8), ("pd", 4), ("baseline", 3)], ids=lambda value: str(value)
)
def test_killed_processes_cost_time_and_nothing_else(
    topology: str,
    kills: int,
    start_server: Start,
    requests: list[Message],
    wanted: list[tuple[Any, ...]],
) -> None:
    """A random process is killed, each time only after tokens have flowed again."""
    rng = np.random.default_rng(kills)
    server = start_server("--topology", topology, "--check-invariants", "--max-num-seqs", "8")
    # Each is killed at least once, the others at random.
    victims = [*PROCESSES[topology], *rng.choice(PROCESSES[topology], kills).tolist()][:kills]
    rng.shuffle(victims)
    rounds = 0
    with load(server) as client:
        for victim in victims:
            if len(client.last) > len(client.requests) - 24:
                for index, fields in enumerate(requests):
                    client.generate(f"{rounds}.{index}", **fields)
                rounds += 1
            enough = client.received + 40
            client.until(lambda enough=enough: client.received >= enough)
            os.kill(process_pid(server, str(victim)), signal.SIGKILL)
        client.until_all_ended()
        for number in range(rounds):
            got = [client.output(f"{number}.{index}") for index in range(len(requests))]
            assert got == wanted
        assert client.info()["counters"]["open_requests"] == 0
    done = server.stop()
    assert done.code == 0
    assert sum("was killed by SIGKILL" in line for line in done.messages) == kills
