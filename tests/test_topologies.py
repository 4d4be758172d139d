"""Every topology as real processes: the same tokens, whoever is killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_arguments
from server_load import (
    BusyLoad,
    Message,
    check_nothing_leaks,
    load,
    outputs,
    process_pid,
    random_requests,
    wait_all_there,
)
from server_process import ServerProcess
from tiny_model import TinyPair

Start = Callable[..., ServerProcess]

pytestmark = pytest.mark.timeout(400)

PROCESSES = {
    "baseline": ["pools", "worker-0", "worker-1", "worker-2", "worker-3"],
    "pd": ["pools", "prefill-0", "decode-0", "tokenizer-0"],
    "pdv": ["pools", "prefill-0", "draft-0", "verify-0", "tokenizer-0"],
}
KILLS = {"baseline": 3, "pd": 4, "pdv": 8}


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


@pytest.mark.parametrize(
    "topology",
    [
        pytest.param(name, marks=[] if name in ("pdv", "unified") else [pytest.mark.slow])
        for name in PROCESSES
    ],
)
def test_the_same_tokens_whoever_is_killed(
    topology: str, start_server: Start, requests: list[Message], wanted: list[tuple[Any, ...]]
) -> None:
    """Undisturbed; then with kills, each after tokens have flowed again; then while it drains."""
    options = ("--check-invariants", "--max-num-seqs", "8")
    server = start_server("--topology", topology, *options, own_group=True)
    assert set(server.pids) == {"launcher", "front", *PROCESSES[topology]}
    assert outputs(server, requests) == wanted
    with load(server) as client:
        check_nothing_leaks(client, 0)
        assert client.info()["counters"]["drafted_tokens"] > 100

    kills = KILLS[topology]
    rng = np.random.default_rng(kills)
    # Each is killed at least once, if there are so many kills, the others at random.
    victims = [*PROCESSES[topology], *rng.choice(PROCESSES[topology], kills).tolist()][:kills]
    rng.shuffle(victims)
    with load(server) as client:
        busy = BusyLoad(client, requests)
        for victim in victims:
            busy.until_tokens(40)
            os.kill(process_pid(server, str(victim)), signal.SIGKILL)
        client.until_all_ended()
        busy.check(wanted)
        wait_all_there(client)
        check_nothing_leaks(client)
        assert client.info()["counters"]["restarts"] > 0

        busy.until_tokens(40)
        os.killpg(server.pid, signal.SIGINT)  # as Ctrl-C does
        client.until(lambda: client.num_open == 0)
        busy.check(wanted)
    done = server.wait()
    assert done.code == 0
    # One that dies while its group is being replaced is no death of its own.
    assert 1 <= sum("was killed by SIGKILL" in line for line in done.messages) <= kills
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("topology", "way"),
    [
        pytest.param("pd", "copy", marks=pytest.mark.slow),
        ("pdv", "handle"),
        pytest.param("pd", "handle", marks=pytest.mark.slow),
        pytest.param("pdv", "copy", marks=pytest.mark.slow),
    ],
)
def test_kv_is_handed_on_between_caches_of_each_worker(
    topology: str,
    way: str,
    start_server: Start,
    requests: list[Message],
    wanted: list[tuple[Any, ...]],
) -> None:
    """The same tokens, also when whoever has a request's KV dies, and nothing of it is left."""
    options = ("--check-invariants", "--max-num-seqs", "8", "--kv-handoff", way)
    server = start_server("--topology", topology, *options)
    workers = PROCESSES[topology][1:]
    assert outputs(server, requests) == wanted
    with load(server) as client:
        edges = client.info()["handoffs"]
        tokens = sum(len(fields["prompt_ids"]) for fields in requests)
        drafted = sum(len(fields["prompt_ids"]) for fields in requests if fields["speculate"])
        # Of a token: keys and values, two heads of 8 numbers of 4 bytes, two layers or one.
        both = way == "copy" or topology == "pd"
        assert edges["prefill>verify"]["kv_bytes"] == tokens * 256 + both * drafted * 128
        if topology == "pdv":  # those that end with their first token are never drafted for
            assert drafted * 64 < edges["verify>draft"]["kv_bytes"] <= drafted * 128
        busy = BusyLoad(client, requests)
        for victim in workers:
            busy.until_tokens(40)
            os.kill(process_pid(server, victim), signal.SIGKILL)
        client.until_all_ended()
        busy.check(wanted)
        wait_all_there(client)
        check_nothing_leaks(client)
    assert [handed_on(process_pid(server, name)) for name in workers] == [[]] * len(workers)
    assert server.stop().code == 0


def handed_on(pid: int) -> list[str]:
    """Buffers with KV that a process has handed on and not freed."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if "handoff" in link]
