"""When the members of a group may start, over stand-ins for processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from launcher.groups import RestartGroups
from launcher.phases import Timeouts
from launcher.recovery import Recovery
from launcher.restarts import RestartPolicy
from pdv_mp.topology import PDV
from pdv_mp.wire.control import Restarting


class StandIn:
    """A process that is gone only when the test says so."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.pid = name, pid
        self.alive, self.killed = True, False

    def kill(self) -> None:
        self.killed = True


class StandIns:
    """What Recovery needs of the processes."""

    def __init__(self) -> None:
        self.generations = dict.fromkeys(PDV.process_names, 0)
        self.started: list[str] = []
        self.sent: list[tuple[str, Restarting]] = []
        self._children = {
            name: StandIn(name, pid) for pid, name in enumerate(PDV.process_names, 100)
        }

    def __getitem__(self, name: str) -> StandIn:
        return self._children[name]

    def __iter__(self) -> Iterator[StandIn]:
        return iter(self._children.values())

    def start(self, name: str) -> None:
        self._children[name] = StandIn(name, 200 + len(self.started))
        self.started.append(name)

    def send(self, child: StandIn, message: Restarting) -> None:
        self.sent.append((child.name, message))


@pytest.fixture
def lost() -> list[tuple[str, str]]:
    return []


def recovery_of(processes: StandIns, lost: list[tuple[str, str]], **timeouts: Any) -> Recovery:
    return Recovery(
        processes,  # type: ignore[arg-type]
        RestartGroups(PDV),
        RestartPolicy(),
        Timeouts(**timeouts),
        say=lambda text: None,
        lose=lambda name, text: lost.append((name, text)),
    )


def test_nobody_starts_before_the_last_one_is_gone(lost: list[tuple[str, str]]) -> None:
    processes = StandIns()
    recovery = recovery_of(processes, lost)
    verify = processes["verify-0"]
    verify.alive = False
    recovery.died(verify, "verify-0 died", "")  # type: ignore[arg-type]
    lanes = [processes["prefill-0"], processes["draft-0"]]
    assert all(lane.killed for lane in lanes)
    for lane in lanes:
        recovery.act()
        assert processes.started == []
        assert recovery.expects_end_of(lane)  # type: ignore[arg-type]
        lane.alive = False
    recovery.act()
    assert sorted(processes.started) == ["draft-0", "prefill-0", "verify-0"]
    assert processes.sent == [("front", Restarting("verify-0", 1, 9))]
    assert not lost


def test_one_that_cannot_be_killed_ends_the_server(lost: list[tuple[str, str]]) -> None:
    processes = StandIns()
    recovery = recovery_of(processes, lost, reap=0.0)
    verify = processes["verify-0"]
    verify.alive = processes["prefill-0"].alive = False
    recovery.died(verify, "verify-0 died", "")  # type: ignore[arg-type]
    recovery.act()
    assert lost[0] == ("verify-0", "process 103 (draft-0) cannot be killed")
    assert processes.started == []


def test_a_hung_worker_is_replaced_only_when_it_is_gone(lost: list[tuple[str, str]]) -> None:
    processes = StandIns()
    recovery = recovery_of(processes, lost)
    draft = processes["draft-0"]
    recovery.died(draft, "draft-0 did not answer", "")  # type: ignore[arg-type]
    recovery.act()
    assert processes.started == []
    draft.alive = False
    recovery.act()
    assert processes.started == ["draft-0"]


def restarting(processes: StandIns, lost: list[tuple[str, str]]) -> tuple[Recovery, StandIn]:
    """The prefill worker has died and is starting again."""
    recovery = recovery_of(processes, lost)
    processes["prefill-0"].alive = False
    recovery.died(processes["prefill-0"], "prefill-0 died", "")  # type: ignore[arg-type]
    recovery.act()
    return recovery, processes["prefill-0"]


def test_one_that_cannot_start_again_is_judged_at_its_end(lost: list[tuple[str, str]]) -> None:
    recovery, prefill = restarting(StandIns(), lost)
    recovery.failed(prefill, "no disk")  # type: ignore[arg-type]
    assert not lost
    prefill.alive = False
    recovery.died(prefill, "prefill-0 exited", "")  # type: ignore[arg-type]
    assert lost == [("prefill-0", "prefill-0 could not start again: no disk")]


def test_a_failure_because_of_another_death_is_none(lost: list[tuple[str, str]]) -> None:
    processes = StandIns()
    recovery, prefill = restarting(processes, lost)
    recovery.failed(prefill, "the pools are gone")  # type: ignore[arg-type]
    processes["pools"].alive = False
    recovery.died(processes["pools"], "pools died", "")  # type: ignore[arg-type]
    assert recovery.expects_end_of(prefill)  # type: ignore[arg-type]
    for child in processes:
        child.alive = child.name == "front"
    recovery.act()
    assert not lost
    assert processes.generations["prefill-0"] == 2
    assert sorted(processes.started[1:]) == sorted(("pools", *PDV.worker_names))
