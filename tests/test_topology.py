from __future__ import annotations

import pytest

from pdv_mp.config import ConfigError
from pdv_mp.topology import TOPOLOGY_NAMES, Topology, Worker, topology


def test_unified_is_one_worker_with_every_stage() -> None:
    row = topology("unified")
    assert row.process_names == ("front", "worker-0")
    assert {stage for worker in row.workers for stage in worker.stages} == {
        "prefill",
        "draft",
        "verify",
    }


def test_replicas_repeat_all_workers() -> None:
    row = Topology("two", (Worker("draft", ("draft",)), Worker("verify", ("verify",))), replicas=2)
    assert row.worker_names == ("draft-0", "verify-0", "draft-1", "verify-1")


@pytest.mark.parametrize("name", [name for name in TOPOLOGY_NAMES if name != "unified"])
def test_rows_that_are_not_built_say_so(name: str) -> None:
    with pytest.raises(ConfigError, match=f"topology '{name}' is not built yet; use 'unified'"):
        topology(name)


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"unified, baseline, pd, pdv, auto; did you mean 'unif"):
        topology("unifid")
