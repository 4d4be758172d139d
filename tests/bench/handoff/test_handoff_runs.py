"""``bench.handoff`` as a command: what it refuses, and short runs of each kind."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.handoff.__main__ import main
from bench.handoff.cells import Cell, Timed
from bench.handoff.gap import PARTS
from bench.handoff.trace_cost import cost_rows, cost_table, trace_variants
from bench.handoff.variants import variants_of
from bench.statistics import MIN_BLOCKS


@pytest.mark.parametrize(
    "arguments",
    [
        ["--concurrency", "1,x"],
        ["--concurrency", "0"],
        ["--option", "wait"],
        ["--topology", "pd,pd"],
        ["--topology", "pd+wait"],
        ["--doses", "draft>verify=1,2,3"],
        ["--doses", "draft>verify=0,1,2", "--topology", "pd,pdv"],
        ["--doses", "draft>verify=0,1,2", "--quick"],
        ["--quick", "--trace-cost"],
        ["--prompt-length", "10000000"],
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / "none")])
    assert done.exit_code == 2, done.output
    assert not (tmp_path / "none").exists()


def test_the_price_of_a_trace_is_beside_the_noise(tmp_path: Path) -> None:
    (base,) = variants_of(["pdv"], {"max-num-seqs": "8"})
    first, again, traced = trace_variants([base], tmp_path)
    assert first.options == again.options == base.options
    assert traced.options["trace"].startswith(str(tmp_path))
    seconds = {first.name: 1.0, again.name: 1.0, traced.name: 1.25}
    cells = {
        (name, 8): Cell([Timed((0, round(s * 1e9)), 100, 100, {}, {})] * MIN_BLOCKS)
        for name, s in seconds.items()
    }
    (row,) = cost_rows([base], cells)
    assert (row["again"], row["traced"]) == pytest.approx((1, 0.8))
    assert f"| pdv | 8 | {MIN_BLOCKS} | 1.000 (1.000–1.000) | 0.800 (" in cost_table([row])


def run(output: Path, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    """Every CSV of a run, by name."""
    usual = ["--requests", "1", "--tokens", "12", "--output", str(output)]
    limits = ["--option", "max-num-seqs=8"]
    done = CliRunner().invoke(main, [*usual, *limits, *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = {}
    for path in output.glob("*.csv"):
        with path.open(encoding="utf-8") as file:
            found[path.stem] = list(csv.DictReader(file))
    return found


@pytest.mark.slow
def test_a_short_run(tmp_path: Path) -> None:
    names = "unified,pdv,pdv+kv-handoff=copy,pdv+wait=spin"
    found = run(tmp_path, "--topology", names, "--rounds", "1", "--concurrency", "1,3")
    assert len(found["topologies"]) == 8
    assert all(0 < float(row["orchestration_share"]) < 1 for row in found["topologies"])
    crossed = {row["edge"] for row in found["edges"] if row["topology"] == "pdv"}
    assert "draft>verify" in crossed
    for row in found["edges"]:
        between = row["topology"].startswith("pdv") or "front" in row["edge"]
        assert (int(row["messages"]) > 0) == between
        assert (int(row["local"]) > 0) != between
    assert len(found["gaps"]) == 6
    for row in found["gaps"]:
        parts = [float(row[part]) for part in PARTS]
        assert sum(parts) == pytest.approx(float(row["gap_us_per_token"]), rel=0.05, abs=0.01)
    copied = [row for row in found["kv_prices"] if row["kv_handoff"] == "copy"]
    assert all(int(row["kv_bytes"]) > 0 for row in copied)
    assert [row["wait"] for row in found["waits"]] == ["block", "spin"] * 2
    switches = [float(row["voluntary_switches_per_token"]) for row in found["waits"]]
    assert switches[1] > switches[0]  # it sleeps between two looks
    assert {row["process"] for row in found["processes"]} >= {"front", "verify-0", "worker-0"}
    assert (tmp_path / "token_time.png").exists()


@pytest.mark.slow
def test_a_short_response_to_doses(tmp_path: Path) -> None:
    doses = ["--doses", "draft>verify=0,2000,20000", "--rounds", "2", "--concurrency", "1"]
    found = run(tmp_path, *doses)
    assert len(found["doses"]) == 6
    token, cycle = found["lines"]
    assert (token["unit"], cycle["unit"]) == ("token", "cycle")
    assert 0.5 < float(cycle["slope"]) < 1.5  # a lone request waits for every proposal
    assert float(token["slope"]) < float(cycle["slope"])


@pytest.mark.slow
def test_a_short_price_of_a_trace(tmp_path: Path) -> None:
    arguments = ["--trace-cost", "--topology", "pdv", "--rounds", "2", "--concurrency", "2"]
    found = run(tmp_path, *arguments)
    assert [row["topology"] for row in found["trace_cost"]] == ["pdv"]
    assert [path.name for path in tmp_path.glob("*.json")] == ["trace-pdv.json"]
