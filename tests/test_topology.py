from __future__ import annotations

import dataclasses

import pytest

from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.topology import (
    ROWS,
    STAGES,
    Topology,
    Worker,
    scheduling_of,
    topology,
    topology_of,
)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_row_hosts_every_stage_once(row: Topology) -> None:
    assert sorted(stage for worker in row.workers for stage in worker.stages) == sorted(STAGES)
    assert topology(row.name) is row


@pytest.mark.parametrize(
    ("name", "processes"),
    [
        ("unified", ("front", "worker-0")),
        ("baseline", ("front", "pools", "worker-0", "worker-1", "worker-2", "worker-3")),
        ("pd", ("front", "pools", "prefill-0", "decode-0", "tokenizer-0")),
        ("pdv", ("front", "pools", "prefill-0", "draft-0", "verify-0", "tokenizer-0")),
    ],
)
def test_processes_of_the_rows(name: str, processes: tuple[str, ...]) -> None:
    assert ROWS[name].process_names == processes


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_split_rows_tokenize_in_a_process_of_its_own(row: Topology) -> None:
    assert row.tokenizers == (1 if row.name.startswith("pd") else 0)
    three = dataclasses.replace(row, tokenizers=3)
    assert three.tokenizer_names == ("tokenizer-0", "tokenizer-1", "tokenizer-2")
    assert three.process_names[-3:] == three.tokenizer_names
    assert not set(three.tokenizer_names) & set(three.worker_names)


def test_replicas_repeat_all_workers() -> None:
    row = Topology("two", (Worker("draft", ("draft",)), Worker("verify", ("verify",))), replicas=2)
    assert row.worker_names == ("draft-0", "verify-0", "draft-1", "verify-1")
    assert row.names_in(1) == ("draft-1", "verify-1")
    assert row.scheduler_names == ("verify-0", "verify-1")
    assert row.place("draft-1") == (row.workers[0], 1)
    with pytest.raises(KeyError):
        row.place("draft-2")


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("baseline", {"worker": 1}),
        ("pdv", {"prefill": None, "draft": None, "verify": None}),
        ("pd-legacy", {"prefill": None, "decode": 6}),
        ("pdv-legacy", {"prefill": None, "draft": None, "verify": 12}),
    ],
)
def test_batch_limits_of_the_rows(name: str, limits: dict[str, int | None]) -> None:
    assert {worker.name: worker.max_batch for worker in ROWS[name].workers} == limits


@pytest.mark.parametrize(("limit", "batch"), [(None, 8), (6, 6), (8, 8), (12, 8)])
def test_a_batch_is_within_both_limits(limit: int | None, batch: int) -> None:
    row = Topology("own", (Worker("worker", STAGES, max_batch=limit),))
    config = dataclasses.replace(EngineConfig.from_options(max_num_seqs=8), table=row)
    assert scheduling_of(config).max_num_seqs == batch


def test_a_table_goes_with_the_configuration() -> None:
    row = Topology("own", (Worker("worker", STAGES, 2, 3, "cpu"),), replicas=2, tokenizers=2)
    named = EngineConfig()
    config = dataclasses.replace(named, topology="own", table=row)
    again = EngineConfig.from_json(config.to_json())
    assert again == config
    assert topology_of(again) == row
    assert topology_of(named) is ROWS["unified"]
    other = dataclasses.replace(row.workers[0], threads=1)
    changed = dataclasses.replace(config, table=dataclasses.replace(row, workers=(other,)))
    assert len({named.fingerprint, config.fingerprint, changed.fingerprint}) == 3


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"unified, baseline, pd, pdv, .*; did you mean 'unified"):
        topology("unifid")
