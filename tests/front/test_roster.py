"""Whose deaths count, and who is away."""

from __future__ import annotations

import pytest

from pdv_mp.front.roster import Roster
from pdv_mp.topology import BASELINE, PDV, UNIFIED


def test_the_death_of_the_pools_counts_once_and_takes_all_workers_along() -> None:
    roster = Roster(PDV, ())
    pids = {"pools": 1, "prefill-0": 2, "draft-0": 3, "verify-0": 4, "tokenizer-0": 5}
    roster.seen(pids)
    roster.died("pools")
    roster.died("verify-0", cause="pools")
    assert roster.away == ["draft-0", "pools", "prefill-0", "verify-0"]
    assert roster.processes == {"tokenizer-0": 5}
    assert roster.restarts_of["pools"] == roster.restarts == 1
    assert roster.restarts_of["verify-0"] == 0
    roster.seen(pids)  # it was said before they died
    assert len(roster.away) == 4
    roster.seen({name: pid + 10 for name, pid in pids.items()})
    assert roster.away == []


def test_replicas_that_fall_with_the_pools_have_not_died_themselves() -> None:
    roster = Roster(BASELINE, ())
    roster.died("pools")
    for number in range(4):
        roster.died(f"worker-{number}", cause="pools")
    assert {name: count for name, count in roster.restarts_of.items() if count} == {"pools": 1}


@pytest.mark.parametrize("name", ["gateway", "metrics"])
def test_of_processes_beside_the_topology_only_deaths_are_known(name: str) -> None:
    roster = Roster(UNIFIED, (), ("gateway", "metrics"))
    assert roster.restarts_of[name] == 0
    roster.died(name)
    assert roster.restarts_of == {"worker-0": 0, "gateway": 0, "metrics": 0, name: 1}
    assert roster.away == []
