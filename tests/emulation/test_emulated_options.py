"""What ``--device emulated:FILE`` asks for is checked before any process starts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from emulation.flat_table import flat_table

from launcher.checks import prepare
from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.emulation.device_name import EmulatedName
from pdv_mp.emulation.planning import device_numbers
from pdv_mp.resources.resource_plan import make_plan
from pdv_mp.resources.resources import build_resources
from pdv_mp.topology import PDV, Topology, Worker
from pdv_mp.workers.rehearsal import rehearse


@pytest.fixture
def device(tmp_path: Path) -> str:
    path = tmp_path / "flat.json"
    path.write_text(json.dumps(flat_table()), encoding="utf-8")
    return f"emulated:{path}"


def prepared(device: str, row: Topology | None = None, **options: Any) -> EngineConfig:
    config = EngineConfig.from_options(device=device, port=0, **options)
    return prepare(dataclasses.replace(config, table=row))


def test_the_table_says_what_is_served(device: str) -> None:
    plan = make_plan(prepared(device, topology="pdv"))
    assert [model.name for model in plan.models] == ["emulated/flat", "emulated/flat-draft"]
    assert plan.max_model_len == 1024
    assert plan.block_bytes == 16 * 2 * (2 * 2 * 1 * 64 * 2)
    assert list(plan.kv_buffers(10)) == []


def test_without_a_draft_model_the_verifier_is_alone(device: str) -> None:
    assert len(make_plan(prepared(device, draft_model="none")).models) == 1


def test_a_shipped_table_goes_by_its_name() -> None:
    plan = make_plan(prepared("emulated:h200-codellama-34b"))
    assert plan.target.name == "emulated/CodeLlama-34B"
    assert plan.max_model_len == 2048  # of the draft


def test_workers_may_be_on_devices_of_their_own(device: str) -> None:
    workers = tuple(
        dataclasses.replace(worker, device="emulated:#1" if worker.name == "draft" else None)
        for worker in PDV.workers
    )
    config = prepared(device, dataclasses.replace(PDV, workers=workers))
    assert config.table is not None
    assert device_numbers(config.table, config.model.device) == (0, 1, 0)


def test_replicas_may_be_on_devices_of_their_own(device: str) -> None:
    worker = Worker("worker", ("verify", "draft", "prefill"), device="emulated:#replica")
    config = prepared(device, Topology("two", (worker,), replicas=2))
    assert config.table is not None
    assert device_numbers(config.table, config.model.device) == (0, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "somewhere"}, "the cost table says which models|its cost table says"),
        ({"draft_model": "somewhere"}, "its cost table says"),
        ({"kv_handoff": "copy", "topology": "pd"}, "use pool"),
        ({"acceptance": "rejection"}, "the cost table says which drafts are kept"),
        ({"exclusive_device": True}, "by itself"),
        ({"streams": 2}, "leave it out"),
        ({"gpu_memory_utilization": 0.01, "device": "emulated:h200-llama-2-7b"}, "the weights of"),
        ({"device": "emulated:h100"}, "shipped cost tables are h200"),
        ({"device": "emulated:x#64"}, "N below 64"),
    ],
)
def test_what_has_no_meaning_is_refused(device: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        prepared(**{"device": device, **options})


def test_real_and_emulated_workers_do_not_mix(device: str) -> None:
    worker = Worker("draft", ("draft",), device=device)
    row = dataclasses.replace(PDV, workers=(PDV.workers[0], worker, PDV.workers[2]))
    with pytest.raises(ConfigError, match="all must be emulated, or none"):
        prepared("cpu", row)


def test_a_name_is_read_as_it_was_written() -> None:
    name = EmulatedName("/a/b.json", "3")
    assert EmulatedName.parse(str(name)) == name
    assert EmulatedName.parse("cuda:0") is None
    assert EmulatedName.parse("emulated:x#replica") == EmulatedName("x", "replica")


def test_nothing_is_computed_when_cycles_are_rehearsed(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an emulated device has no logits to sample from")

    monkeypatch.setattr("pdv_mp.speculation.shared_gumbel.sample", refuse)
    config = prepared(device, max_num_seqs=2)
    resources = build_resources(config)
    rehearsed = rehearse(resources, config)
    found = rehearsed.times
    assert rehearsed.read_ns > 0
    assert {times.sequences for times in found} == {1, 2}
    assert all(times.verify_ns >= 210_000 for times in found)
    assert all(times.draft_ns >= times.steps * 210_000 for times in found)
    resources.close()
