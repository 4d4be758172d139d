"""The bound of every cell, and results that hold no rates."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from made_results import FolderInMemory, Truth

from bench.report.analysis import analyse
from bench.report.cell_rows import throughput_row
from bench.report.page_blocks import Paragraph, Table
from bench.report.page_results import five_pictures
from bench.roofline import CellWork, ModelCost, cell_bound, recorded
from bench.roofline.machine import MachineRates
from bench.roofline.recorded import KEY, PairCosts, Recorded, facts, recorded_in
from pdv_mp import assets

TRUTH = Truth(candidates=("unified",), twin=False, concurrencies=(1, 4), blocks=2, window=0.5)
VERIFIER = ModelCost(10, 256, 4, 2, 64, 640, 4096, 4)
DRAFT = ModelCost(2, 128, 2, 1, 64, 384, 4096, 4)
RECORDED = Recorded("this CPU", True, 20e9, 100e9, {"shipped": PairCosts(VERIFIER, DRAFT)})


def folder(environment: dict[str, object]) -> FolderInMemory:
    """A run with more in its environment."""
    run = TRUTH.run()
    run = msgspec.structs.replace(run, environment={**run.environment, **environment})
    return FolderInMemory(run, list(TRUTH.cells(run)), TRUTH.end(run))


def test_measured_over_bound_of_every_cell() -> None:
    analysis = analyse(folder({KEY: msgspec.to_builtins(RECORDED)}))
    for cell in analysis.cells:
        assert cell.mean_tokens is not None
        drafts, concurrency = cell.speculation, cell.shape.concurrency
        assert concurrency is not None
        passes = drafts.cycles + drafts.plain
        tokens = drafts.cycles + drafts.accepted + drafts.plain
        work = CellWork(concurrency, *cell.mean_tokens, drafts.drafted / passes, tokens / passes)
        bound = cell_bound(RECORDED.rates, VERIFIER, DRAFT, work)
        assert cell.bound == pytest.approx(bound)
        assert cell.throughput is not None
        row = throughput_row(cell)
        assert row["bound_output_tokens_per_s"] == cell.bound
        assert row["measured_over_bound"] == pytest.approx(cell.throughput.value / bound)
    (table,) = (b for b in five_pictures(analysis, {}).blocks if isinstance(b, Table))
    assert [row[-1] for row in table.rows] == [f"{c.share_of_bound:.2f}" for c in analysis.cells]


@pytest.mark.parametrize("kept", [{}, {KEY: None}, {KEY: {"device": "of a later version"}}])
def test_results_without_rates_say_so(kept: dict[str, object]) -> None:
    analysis = analyse(folder(kept))
    assert {cell.bound for cell in analysis.cells} == {None}
    texts = [b.text for b in five_pictures(analysis, {}).blocks if isinstance(b, Paragraph)]
    assert any("Measured ÷ bound: not measured." in text for text in texts)


def test_a_cpus_rates_are_measured_with_the_servers_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def measure(threads: int) -> MachineRates:
        asked.append(threads)
        return MachineRates(threads, read=3e10, copy=2e10, flops=1e11)

    monkeypatch.setattr(recorded, "measure", measure)
    pairs = {"shipped": (assets.verifier_path(), assets.draft_path())}
    for options, threads in (({"threads": 3}, 3), ({"threads": None}, 8)):
        found = facts({"gpus": [], "usable": 8}, options, pairs)
        assert found is not None
        assert (found.measured, found.bandwidth, found.flops) == (True, 3e10, 1e11)
        assert found.pairs["shipped"].verifier == VERIFIER
        assert found.pairs["shipped"].draft == DRAFT
        assert asked.pop() == threads


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
    ],
)
def test_only_whole_gpus_that_the_table_knows_have_rates(name: str, device: str | None) -> None:
    found = facts({"gpus": [{"name": name}]}, {}, {})
    assert (None if found is None else found.device) == device


def test_a_named_gpu_has_the_rates_of_the_table(tmp_path: Path) -> None:
    machine = {"gpus": [{"name": "NVIDIA H200"}], "usable": 2}
    pairs = {
        "shipped": (assets.verifier_path(), assets.draft_path()),
        "unknown": (tmp_path, tmp_path),
    }
    found = facts(machine, {"device": "auto", "dtype": "auto"}, pairs)
    assert found is not None
    assert (found.device, found.measured, found.bandwidth) == ("H200", False, 4.3e12)
    assert found.pairs["shipped"].verifier.bytes_per_number == 2
    assert set(found.pairs) == {"shipped"}
    assert recorded_in({KEY: msgspec.to_builtins(found)}) == found
    assert facts({"gpus": [{"name": "another"}]}, {}, {}) is None
