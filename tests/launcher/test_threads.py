"""How many threads each worker gets, and how its process is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from launcher import checks
from launcher.checks import served, with_threads
from launcher.launch_command import child_spec
from pdv_mp.config import EngineConfig
from pdv_mp.topology import BASELINE, PDV, UNIFIED, Topology, Worker

OWN = Topology("own", (Worker("decode", ("verify", "draft"), 7), Worker("prefill", ("prefill",))))


@pytest.mark.parametrize(
    ("row", "cores", "variable", "given", "threads"),
    [
        (UNIFIED, 2, "", None, [2]),
        (UNIFIED, 16, "", None, [16]),
        (PDV, 2, "", None, [1, 1, 1]),
        (PDV, 16, "", None, [5, 5, 5]),
        (BASELINE, 2, "", None, [1]),
        (BASELINE, 16, "", None, [4]),
        (OWN, 16, "", None, [7, 8]),
        (OWN, 16, "3", None, [7, 3]),
        (OWN, 16, "3", 2, [2, 2]),
        (PDV, 16, "many", None, [5, 5, 5]),
        (PDV, 16, "0", None, [5, 5, 5]),
    ],
)
def test_workers_share_the_cores(
    monkeypatch: pytest.MonkeyPatch,
    row: Topology,
    cores: int,
    variable: str,
    given: int | None,
    threads: list[int],
) -> None:
    monkeypatch.setattr(checks, "usable_cores", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert [worker.threads for worker in with_threads(row, given).workers] == threads


def test_threads_are_bounded_before_a_process_starts() -> None:
    workers = (Worker("prefill", ("prefill",), 2), Worker("decode", ("verify",), 3))
    row = Topology("own", workers, tokenizers=1)
    config = dataclasses.replace(EngineConfig(), table=row)
    generations = dict.fromkeys(row.process_names, 4)
    found = {}
    for name in row.process_names:
        spec = child_spec(config, name, Path("/run"), generations)
        assert spec.environment["OMP_WAIT_POLICY"] == "PASSIVE"
        assert spec.environment["OMP_NUM_THREADS"] == spec.environment["MKL_NUM_THREADS"]
        found[name] = spec.environment["OMP_NUM_THREADS"]
        given = dict(zip(spec.command[4::2], spec.command[5::2], strict=True))
        assert given["--generation"] == "4"
        assert json.loads(given["--generations"]) == generations
    alone = {"front": "1", "pools": "1", "tokenizer-0": "1"}
    assert found == {**alone, "prefill-0": "2", "decode-0": "3"}


def test_without_a_draft_model_nobody_only_drafts() -> None:
    with_draft = dataclasses.replace(EngineConfig().model, draft_model="/draft")
    alone = EngineConfig().model
    assert served(PDV, with_draft) == PDV
    assert served(PDV, alone).worker_names == ("prefill-0", "verify-0")
    assert served(UNIFIED, alone) == UNIFIED
