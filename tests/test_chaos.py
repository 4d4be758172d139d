"""Every process of every topology killed, stopped or poisoned under load: what the clients notice,
and what is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import psutil
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
    wait_replaced,
)
from server_process import ServerProcess
from test_recovery import POISONOUS, poisoned
from tiny_model import TinyPair

from launcher.run_directory import run_base, sweep_stale
from pdv_mp.topology import FRONT, topology

Start = Callable[..., ServerProcess]

TOPOLOGIES = ("unified", "baseline", "pd", "pdv")
KILLS = 20
LANE_TIMEOUT = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def requests() -> list[Message]:
    """Every third has a text, which is still to be tokenized, for its prompt."""
    requests = random_requests(48, seed=21)
    for index, fields in enumerate(requests[::3]):
        del fields["prompt_ids"]
        fields["prompt"] = f"def f{index}(x):\n    return x + {index}\n" * (1 + index % 3)
    return requests


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


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_twenty_processes_killed_or_stopped_two_at_a_time(
    name: str, start_server: Start, requests: list[Message], wanted: list[tuple[Any, ...]]
) -> None:
    """Those that are stopped are found by their silence; the next two wait until all are back,
    since one that is stopped while it starts is given far longer."""
    processes = [process for process in topology(name).process_names if process != FRONT]
    at_once = min(2, len(processes))
    rng = np.random.default_rng(KILLS)
    server = start_server(
        *("--topology", name, "--check-invariants", "--max-num-seqs", "8"),
        *("--lane-timeout", str(LANE_TIMEOUT), "--max-restarts", "100", "--restart-window", "20"),
    )
    signals = {signal.SIGKILL: 0, signal.SIGSTOP: 0}
    with load(server) as client:
        busy = BusyLoad(client, requests)
        while sum(signals.values()) < KILLS:
            busy.until_tokens(40)
            # Found before the first of them dies, since both may fall with it.
            victims = {
                str(victim): process_pid(server, str(victim))
                for victim in rng.choice(processes, at_once, replace=False)
            }
            for pid in victims.values():
                number = signal.SIGKILL if rng.random() < 0.6 else signal.SIGSTOP
                signals[number] += 1
                try:
                    os.kill(pid, number)
                except ProcessLookupError:  # fell with the one before
                    continue
            wait_replaced(server, client, victims)
        client.until_all_ended()
        busy.check(wanted)
        check_nothing_leaks(client)
    assert min(signals.values()) > 3
    done = server.stop()
    assert done.code == 0
    assert any("was killed by SIGKILL; it is started again" in line for line in done.messages)
    silent = f"did not answer for {LANE_TIMEOUT} s and was killed; it is started again"
    assert any(silent in line for line in done.messages)


def shared_memory(pids: Iterable[int]) -> set[int]:
    """Inodes of the memfds that these processes hold open."""
    inodes = set()
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        for fd in os.listdir(folder):
            path = f"{folder}/{fd}"
            if os.readlink(path).startswith("/memfd:pdv_mp-"):
                inodes.add(os.stat(path).st_ino)
    return inodes


def mapped(inodes: set[int]) -> set[str]:
    """Process ids of all that map memory of these inodes."""
    holders = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/maps") as maps:
                lines = [line.split() for line in maps]
        except OSError:  # it has ended, or is another user's
            continue
        if any(len(line) > 5 and line[5].startswith("/memfd:") for line in lines) and any(
            int(line[4]) in inodes for line in lines
        ):
            holders.add(pid)
    return holders


def fill(client: Any, requests: list[Message]) -> None:
    """Open requests whose tokens flow."""
    for index, fields in enumerate(requests):
        client.generate(str(index), **{**fields, "max_tokens": 400, "stream": True})
    client.until(lambda: client.received > 40)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_killed_launcher_leaves_nothing(
    name: str, start_server: Start, requests: list[Message]
) -> None:
    """But its run directory, which the next launcher removes."""
    server = start_server("--topology", name)
    children = [psutil.Process(pid) for role, pid in server.pids.items() if role != "launcher"]
    memory = shared_memory(child.pid for child in children)
    assert memory
    with load(server) as client:
        fill(client, requests)
        server.process.kill()
        server.process.wait()
        _, there = psutil.wait_procs(children, timeout=2)
        # A zombie has let go of everything; init reaps it when it comes to that.
        assert all(child.status() == psutil.STATUS_ZOMBIE for child in there if child.is_running())
    assert not mapped(memory)
    assert server.run_dir.exists()
    assert sweep_stale(run_base()) == [server.run_dir]
    assert not server.run_dir.exists()


@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, signal.SIGKILL) for name in TOPOLOGIES), ("pdv", signal.SIGSTOP)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_dead_front_ends_the_server(
    name: str, how: signal.Signals, start_server: Start, requests: list[Message]
) -> None:
    server = start_server("--topology", name, "--lane-timeout", str(LANE_TIMEOUT))
    children = [psutil.Process(pid) for role, pid in server.pids.items() if role != "launcher"]
    with load(server) as client:
        fill(client, requests)
        os.kill(server.pids["front"], how)
        done = server.wait(2 * LANE_TIMEOUT + 10)
    _, alive = psutil.wait_procs(children, timeout=0)
    assert not alive
    assert not server.run_dir.exists()
    assert done.code == 4
    said = {
        signal.SIGKILL: "front was killed by SIGKILL",
        signal.SIGSTOP: f"front did not answer for {LANE_TIMEOUT} s and was killed",
    }
    assert [line for line in done.messages if line.startswith("front ")] == [said[how]]


@pytest.mark.parametrize(
    ("process", "how"), [("prefill-0", "crash"), ("draft-0", "kill"), ("verify-0", "raise")]
)
def test_a_request_that_keeps_killing_a_process_is_found(
    process: str, how: str, start_server: Start, requests: list[Message]
) -> None:
    """Whoever kills the draft's process is served without drafts."""
    stage = process.partition("-")[0]
    environment = poisoned(stage, how, process=process)
    server = start_server(
        "--topology", "pdv", "--max-num-seqs", "8", "--check-invariants", environment=environment
    )
    wanted = outputs(server, requests)
    bad: Message = {"prompt_ids": [5, 6], "max_tokens": 60, "ignore_eos": True, "temperature": 1.0}
    with load(server) as client:
        for index, fields in enumerate(requests):
            client.generate(str(index), **fields)
            if index == 5:
                client.generate("bad", **bad, seed=POISONOUS)
        client.until_all_ended()
        for index, output in enumerate(wanted):
            assert client.output(str(index)) == output
        last = client.last["bad"]
        if stage == "draft":
            assert last["finish"] == "length"
            assert last["speculation"]["drafted"] == 0
        else:
            assert (last["type"], last["code"], last["retryable"]) == ("error", "internal", False)
            assert "died 3 times" in last["message"]
        wait_all_there(client)
        check_nothing_leaks(client)
        restarts = client.info()["counters"]["restarts"]
        # Without drafts it may have ended before the process was back.
        assert restarts in ((1, 2) if stage == "draft" else (3,))
        client.generate("after", prompt_ids=[20, 21], max_tokens=5, ignore_eos=True)
        client.until_all_ended()
        assert client.last["after"]["finish"] == "length"
    assert server.stop().code == 0


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("unified", signal.SIGHUP),
        ("baseline", signal.SIGTERM),
        ("pd", signal.SIGINT),
        ("pdv", signal.SIGTERM),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_in_the_middle_of_a_recovery_drains(
    name: str,
    number: signal.Signals,
    start_server: Start,
    requests: list[Message],
    wanted: list[tuple[Any, ...]],
) -> None:
    """What is open is finished, by processes that are being started again."""
    server = start_server("--topology", name)
    victim = topology(name).scheduler_names[0]
    with load(server) as client:
        busy = BusyLoad(client, requests)
        busy.until_tokens(40)
        os.kill(server.pids[victim], signal.SIGKILL)
        server.process.send_signal(number)
        client.until(lambda: client.num_open == 0)
        busy.check(wanted)
    done = server.wait()
    assert done.code == 0, done.stderr
    assert f"pdv-launch: {number.name}: draining; once more to abort" in done.stderr
