"""Workers that die under load: clients notice a pause and nothing else."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from server_load import check_nothing_leaks, load, outputs, process_pid, random_requests
from server_process import ServerProcess

Start = Callable[..., ServerProcess]

POISON_FOLDER = Path(__file__).with_name("poison")
POISONOUS = 131_313


def poisoned(stage: str, how: str, nth: int = 1, process: str = "worker-0") -> dict[str, str]:
    """Environment of a server in which a request whose seed is POISONOUS kills ``process``."""
    path = os.pathsep.join((str(POISON_FOLDER), os.environ["PYTHONPATH"]))
    return {"POISON": f"{process}:{stage}:{how}:{nth}", "PYTHONPATH": path}


def test_a_worker_killed_under_load_costs_time_and_nothing_else(start_server: Start) -> None:
    requests = random_requests(40, seed=3)
    server = start_server("--max-num-seqs", "8", "--check-invariants")
    wanted = outputs(server, requests)
    kills = 4
    with load(server) as client:
        for index, fields in enumerate(requests):
            client.generate(str(index), **fields)
        for _ in range(kills):
            enough = client.received + 60
            client.until(lambda enough=enough: client.received >= enough)
            os.kill(process_pid(server, "worker-0"), signal.SIGKILL)
        client.until_all_ended()
        got = [client.output(str(index)) for index in range(len(requests))]
        assert got == wanted
        check_nothing_leaks(client, kills)
        pids = client.info()["processes"]
        assert pids["worker-0"] == process_pid(server, "worker-0") != server.pids["worker-0"]
    done = server.stop()
    assert done.code == 0
    said = [line for line in done.messages if "worker-0" in line]
    assert sum("was killed by SIGKILL; it is started again" in line for line in said) == kills
    assert sum("worker-0 serves again after" in line for line in said) == kills


def test_the_pause_is_a_state_of_the_timeline(start_server: Start) -> None:
    server = start_server()
    with load(server) as client:
        client.generate("a", prompt_ids=[20, 21], max_tokens=300, ignore_eos=True, timeline=True)
        client.until(lambda: client.received > 20)
        os.kill(process_pid(server, "worker-0"), signal.SIGKILL)
        client.until_all_ended()
        client.generate("b", prompt_ids=[20, 21], max_tokens=3, ignore_eos=True, timeline=True)
        client.until_all_ended()
        timeline = client.last["a"]["timeline"]
        states = timeline["states"]
        assert states["front.restart"]["n"] == 1
        assert states["front.restart"]["ns"] > 0.1e9
        assert sum(state["ns"] for state in states.values()) == timeline["e2e_ns"]
        assert "front.restart" not in client.last["b"]["timeline"]["states"]


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("verify", "raise"),
        pytest.param("prefill", "crash", marks=pytest.mark.slow),
        pytest.param("draft", "kill", marks=pytest.mark.slow),
    ],
)
def test_a_request_that_keeps_killing_the_worker_is_found(
    start_server: Start, stage: str, how: str
) -> None:
    requests = random_requests(24, seed=4)
    server = start_server("--max-num-seqs", "8", environment=poisoned(stage, how))
    wanted = outputs(server, requests)
    with load(server) as client:
        for index, fields in enumerate(requests):
            client.generate(str(index), **fields)
            if index == 5:
                client.generate(
                    "bad", prompt_ids=[5, 6], seed=POISONOUS, max_tokens=60, ignore_eos=True
                )
        client.until_all_ended()
        assert [client.output(str(index)) for index in range(len(requests))] == wanted
        last = client.last["bad"]
        assert (last["type"], last["code"], last["retryable"]) == ("error", "internal", False)
        assert "worker-0 died 3 times" in last["message"]
        client.generate("after", prompt_ids=[20, 21], max_tokens=5, ignore_eos=True)
        client.until_all_ended()
        assert client.last["after"]["finish"] == "length"
        check_nothing_leaks(client, 3)
    assert server.stop().code == 0


@pytest.mark.slow
def test_a_request_that_kills_now_and_then_is_found_before_the_server_is_given_up(
    start_server: Start,
) -> None:
    environment = poisoned("verify", "kill", nth=8)
    server = start_server("--max-restarts", "5", environment=environment)
    with load(server) as client:
        client.generate("bad", prompt_ids=[5, 6], seed=POISONOUS, max_tokens=400, ignore_eos=True)
        for index in range(4):
            prompt = [20 + index, 21]
            client.generate(str(index), prompt_ids=prompt, max_tokens=200, ignore_eos=True)
        client.until_all_ended()
        assert (client.last["bad"]["code"], client.last["bad"]["retryable"]) == ("internal", False)
        for index in range(4):
            assert client.last[str(index)]["finish"] == "length"
        check_nothing_leaks(client, 5)


def test_a_used_up_budget_is_the_end(start_server: Start) -> None:
    # Two at a time: however fast they are, most are still open at the second death.
    server = start_server("--max-restarts", "1", "--max-num-seqs", "2")
    with load(server) as client:
        for index in range(24):
            client.generate(str(index), prompt_ids=[20, 21], max_tokens=500, ignore_eos=True)
        for _ in range(2):
            enough = client.received + 20
            client.until(lambda enough=enough: client.received >= enough)
            os.kill(process_pid(server, "worker-0"), signal.SIGKILL)
        killed = time.monotonic()
        client.until(lambda: len(client.last) == 24)
        assert time.monotonic() - killed < 10.0, "clients must be told at once"
        told = [last for last in client.last.values() if last.get("finish") != "length"]
        assert len(told) > 2
        assert {(last["code"], last["retryable"]) for last in told} == {("lane_failed", True)}
    done = server.wait()
    assert done.code == 4
    # The second death may come before the new process is ready.
    ending = r"worker-0 was killed by SIGKILL( before it was ready)?, after 1 restarts within 600 s"
    assert any(re.match(ending, line) for line in done.messages)
