"""What a death takes along is started again with it: the real supervisor over fake children."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from typing import Any

import psutil
import pytest
from process_end import wait_ended

WITH_POOLS = ("pools", "prefill-0", "draft-0", "verify-0")
PDV = ("front", *WITH_POOLS, "tokenizer-0")
REPLICA = WITH_POOLS[1:]


def kill(pids: dict[str, int], *names: str) -> None:
    for name in names:
        os.kill(pids[name], signal.SIGKILL)


def wait_dead(pids: dict[str, int], *names: str) -> None:
    """Waits until they have ended, though nobody has taken notice."""
    for name in names:
        wait_ended(pids[name])


def renewed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """The processes that have another id now."""
    assert before["pids"].keys() == after["pids"].keys()
    return {name for name, pid in before["pids"].items() if after["pids"][name] != pid}


def finish(server: Any, code: int = 0) -> list[str]:
    """Stops the server; all lines of its stderr."""
    if code == 0:
        server.send(signal.SIGTERM)
    ended, text = server.finish()
    assert ended == code, text
    return text.splitlines()


def told(lines: Iterable[str], name: str) -> list[str]:
    """What a process said that it was told about restarts."""
    start = f"[{name}] told to Restarting "
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def test_a_worker_without_a_scheduler_is_started_again_alone(serve: Any) -> None:
    server = serve(topology="pdv")
    first = server.wait_ready()
    assert set(first["pids"]) == set(PDV)
    kill(first["pids"], "draft-0")
    second = server.wait_ready()
    assert renewed(first, second) == {"draft-0"}
    assert second["facts"]["draft-0"]["generations"] == {**dict.fromkeys(PDV, 0), "draft-0": 1}
    lines = finish(server)
    assert told(lines, "front") == told(lines, "verify-0") == ["draft-0 1 9"]
    assert told(lines, "prefill-0") == told(lines, "pools") == []


def test_with_a_scheduler_its_replica_starts_anew(serve: Any) -> None:
    server = serve(topology="pdv", restarts={"max_restarts": 1})
    first = server.wait_ready()
    kill(first["pids"], "verify-0")
    second = server.wait_restarts(3)
    assert renewed(first, second) == set(REPLICA)
    assert not any(psutil.pid_exists(first["pids"][name]) for name in REPLICA)
    for name in REPLICA:
        assert second["facts"][name]["generations"] == {
            **dict.fromkeys(PDV, 0),
            **dict.fromkeys(REPLICA, 1),
        }
    kill(second["pids"], "draft-0")  # which has its whole budget yet
    assert renewed(second, server.wait_ready()) == {"draft-0"}
    lines = finish(server)
    assert (
        "pdv-launch: verify-0 was killed by SIGKILL; it is started again now together with "
        "prefill-0, draft-0 (restart 1 of at most 1 within 600 s)"
    ) in lines
    assert told(lines, "front") == ["verify-0 1 0", "draft-0 2 0"]
    assert told(lines, "verify-0") == ["draft-0 2 0"]


def test_other_replicas_go_on(serve: Any) -> None:
    server = serve(topology="baseline")
    first = server.wait_ready()
    kill(first["pids"], "worker-2")
    assert renewed(first, server.wait_ready()) == {"worker-2"}
    assert told(finish(server), "front") == ["worker-2 1 9"]


def test_with_the_pools_all_but_the_front_start_anew(serve: Any) -> None:
    row = {
        "name": "two",
        "workers": [
            {"name": "prefill", "stages": ["prefill"]},
            {"name": "decode", "stages": ["verify", "draft"]},
        ],
        "replicas": 2,
    }
    server = serve(topology=row)
    first = server.wait_ready()
    kill(first["pids"], "pools")
    second = server.wait_restarts(5)
    assert renewed(first, second) == set(first["pids"]) - {"front"}
    lines = finish(server)
    assert told(lines, "front") == ["pools 1 9", "decode-0 1 9 pools", "decode-1 1 9 pools"]


@pytest.mark.parametrize(
    ("victims", "fallen", "named"),
    [
        (("draft-0", "verify-0"), REPLICA, "verify-0"),
        (("prefill-0", "draft-0"), ("prefill-0", "draft-0"), None),
        (("draft-0", "verify-0", "pools"), WITH_POOLS, "pools"),
        (WITH_POOLS, WITH_POOLS, "pools"),
    ],
)
def test_several_that_die_at_once_are_started_again_once(
    serve: Any, victims: tuple[str, ...], fallen: tuple[str, ...], named: str | None
) -> None:
    server = serve(topology="pdv")
    first = server.wait_ready()
    server.send(signal.SIGSTOP)
    kill(first["pids"], *victims)
    wait_dead(first["pids"], *victims)
    server.send(signal.SIGCONT)
    second = server.wait_restarts(len(fallen))
    assert renewed(first, second) == set(fallen)
    for name in fallen:
        own = second["facts"][name]["generations"][name]
        assert own == 1
    lines = finish(server)
    started = [line for line in lines if "it is started again" in line]
    if named is None:
        assert len(started) == 2
    else:
        (line,) = started
        assert line.startswith(f"pdv-launch: {named} was killed by SIGKILL; ")
        for victim in set(victims) - {named}:
            assert f"pdv-launch: {victim} was killed by SIGKILL, too" in lines


def test_a_worker_dies_and_then_its_scheduler(serve: Any) -> None:
    server = serve(topology="pdv", restarts={"first_delay": 60.0, "longest_delay": 60.0})
    first = server.wait_ready()
    kill(first["pids"], "draft-0")
    second = server.wait_ready()
    kill(second["pids"], "draft-0")
    server.wait_line("it is started again in 60 s")
    kill(second["pids"], "verify-0")
    third = server.wait_restarts(2)  # the one that waits keeps its time
    assert renewed(second, third) == {"prefill-0", "verify-0"}
    assert third["facts"]["verify-0"]["generations"]["draft-0"] == 3
    finish(server)


@pytest.mark.parametrize("victim", ["draft-0", "verify-0", "pools"])
def test_killed_while_starting_again(serve: Any, victim: str) -> None:
    """The scheduler has been started and has not said hello yet when something else dies."""
    children = {"verify-0": "serve,late-serve,serve", "draft-0": "serve,mute,serve"}
    server = serve(topology="pdv", children=children)
    first = server.wait_ready()
    kill(first["pids"], "verify-0")
    second = server.wait_ready()
    assert renewed(first, second) == set(REPLICA)
    server.wait_line("[verify-0] late")
    kill(second["pids"], victim)
    server.wait_line(
        f"{victim} was killed by SIGKILL before it was ready; it is started again"
        if victim != "pools"
        else "pools was killed by SIGKILL; it is started again"
    )
    if victim == "draft-0":
        os.kill(second["pids"]["verify-0"], signal.SIGCONT)
        third = server.wait_restarts(2)
        assert renewed(second, third) == {"draft-0"}
        lines = finish(server)
        assert told(lines, "verify-0") == ["draft-0 2 9"]
        assert told(lines, "front") == ["draft-0 2 9"]
    else:
        fallen = REPLICA if victim == "verify-0" else WITH_POOLS
        third = server.wait_restarts(len(fallen))
        assert renewed(second, third) == set(fallen)
        assert third["facts"]["verify-0"]["generations"]["draft-0"] == 2
        assert told(finish(server), "front")[-1].startswith("verify-0 2 ")


def test_a_start_that_fails_because_the_pools_died_is_made_again(serve: Any) -> None:
    server = serve(topology="baseline", children={"worker-0": "serve,late-fail,serve"})
    first = server.wait_ready()
    kill(first["pids"], "worker-0")
    server.wait_line("[worker-0] late")
    (starting,) = [
        child
        for child in psutil.Process(server.process.pid).children()
        if child.pid not in first["pids"].values()
    ]
    server.send(signal.SIGSTOP)
    kill(first["pids"], "pools")
    wait_dead(first["pids"], "pools")
    os.kill(starting.pid, signal.SIGCONT)
    server.send(signal.SIGCONT)
    last = server.wait_restarts(5)
    assert renewed(first, last) == set(first["pids"]) - {"front"}
    assert not any("could not start again" in line for line in finish(server))


def test_the_owner_of_memory_leaves_last(serve: Any) -> None:
    server = serve(topology="pdv")
    server.wait_ready()
    stops = [line for line in finish(server) if line.endswith("told to Stop")]
    assert stops[-1] == "[pools] told to Stop"
    assert len(stops) == len(PDV)


def test_one_that_cannot_start_again_and_does_not_leave_ends_the_server(serve: Any) -> None:
    server = serve(worker="serve,fail-and-stay", timeouts={"failed_stop": 0.3})
    kill(server.wait_ready()["pids"], "worker-0")
    lines = finish(server, code=4)
    assert "pdv-launch: worker-0 could not start again: there is no disk left" in lines
    assert "[front] told to Lost" in lines


def test_a_used_up_budget_of_the_pools_ends_the_server(serve: Any) -> None:
    server = serve(topology="pd", restarts={"max_restarts": 1})
    kill(server.wait_ready()["pids"], "pools")
    kill(server.wait_restarts(3)["pids"], "pools")
    lines = finish(server, code=4)
    assert "pdv-launch: pools was killed by SIGKILL, after 1 restarts within 600 s" in lines
    assert "[front] told to Lost" in lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_group_starts_again_stops_cleanly(
    serve: Any, number: signal.Signals
) -> None:
    server = serve(topology="pdv", children={"verify-0": "serve,mute", "draft-0": "serve,mute"})
    kill(server.wait_ready()["pids"], "verify-0")
    pids = server.wait_ready()["pids"]
    server.send(number)
    code, text = server.finish()
    assert code == 0, text
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
