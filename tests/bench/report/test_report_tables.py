"""``bench.report.tables``: every number of an analysis is in a file, under a name with its unit."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from made_results import Truth

from bench.report.analysis import analyse
from bench.report.modes import failure_modes, success_modes
from bench.report.tables import write_tables
from bench.results.records import Load, Objective
from bench.results.store import ResultsError

TABLES = {
    "throughput.csv",
    "latency.csv",
    "utilisation.csv",
    "acceptance.csv",
    "cells.csv",
    "processes.csv",
    "problems.csv",
    "comparisons.csv",
    "noise.csv",
    "success_modes.csv",
    "failure_modes.csv",
    "valley.csv",
    "recommendation.csv",
}


def rate(candidate: str, load: Load) -> float:
    clients = load.concurrency or 8
    return (
        200
        * clients**0.5
        * {"unified": 1.0, "pd": 1.3, "pdv": {2: 0.8, 8: 0.5}.get(clients, 1.5)}[candidate]
    )


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_tables_hold_what_the_analysis_says(tmp_path: Path) -> None:
    truth = Truth(
        rate=rate,
        share=lambda name, load: 0.3 if name == "pdv" else 0.1,
        concurrencies=(2, 8, 32),
        tokens=16,
        window=0.5,
        gpu=True,
        objective=Objective(ttft_ms=50),
        failed={("pd", "C=2", 4): "it died"},
    )
    analysis = analyse(truth.in_memory())
    paths = write_tables(analysis, tmp_path / "new" / "tables")
    assert {path.name for path in paths} == TABLES
    rows = {path.name: read(path) for path in paths}
    for name, found in rows.items():
        assert found, name
        assert {row["schema_version"] for row in found} == {"2"}
    assert len(rows["cells.csv"]) == len(rows["throughput.csv"]) == 4 * 3
    for row in rows["cells.csv"]:
        cell = analysis.cell(row["pair"], row["candidate"], row["load"])
        assert cell.throughput is not None
        assert cell.e2e.p50 is not None
        assert cell.goodput is not None
        assert cell.speculation.acceptance_rate is not None
        assert cell.orchestration_share is not None
        assert float(row["output_tokens_per_s"]) == cell.throughput.value
        assert float(row["output_tokens_per_s_low"]) == cell.throughput.low
        assert float(row["goodput_requests_per_s"]) == cell.goodput.value
        assert float(row["e2e_p50_ms"]) == cell.e2e.p50.value
        assert int(row["e2e_samples"]) == cell.e2e.samples
        assert (row["ttft_p99_ms"] == "") == (cell.ttft.p99 is None)
        assert float(row["acceptance_rate"]) == cell.speculation.acceptance_rate.value
        assert float(row["orchestration_share"]) == cell.orchestration_share.value
        # As the made processes use it: the workers together 1.5 cores, the front 0.1.
        assert float(row["server_cores"]) == pytest.approx(1.6)
        assert float(row["client_cores"]) == pytest.approx(0.05)
        processes = int(row["server_processes"])
        assert processes == len(cell.uses) - 1
        assert int(row["server_pss_bytes"]) == processes * 100 * 2**20
        tokens = sum(cell.block_throughput.values())  # of windows of half a second
        assert float(row["server_cpu_seconds_per_token"]) == pytest.approx(
            1.6 * cell.blocks / tokens
        )
        assert float(row["gpu_utilisation"]) == 0.5
        assert row["gpu_memory_bytes"] == str(2**30)
        assert int(row["concurrency"]) == cell.shape.concurrency
    (problem,) = rows["problems.csv"]
    assert (problem["candidate"], problem["block"], problem["kind"]) == ("pd", "4", "failed")
    assert len(rows["comparisons.csv"]) == 6 * 3
    for row in rows["comparisons.csv"]:
        found = analysis.comparison(row["pair"], row["load"], row["candidate"], row["reference"])
        assert row["verdict"] == found.verdict
        assert found.ratio is not None
        assert float(row["throughput_ratio_high"]) == found.ratio.high
        assert found.cause is not None
        assert row["cause"] == found.cause.text
    for name, verdict in (("success_modes.csv", "ahead"), ("failure_modes.csv", "behind")):
        for row in rows[name]:
            assert row["reference"] == "unified"
            assert row["verdict"] == verdict
            change = float(row["throughput_change_percent"])
            assert float(row["throughput_change_low_percent"]) < change
            assert (change > 0) == (verdict == "ahead")
            assert "ms" in row["cause"]
    ahead = [(c.candidate, c.load) for c in success_modes(analysis)]
    assert set(ahead) == {("pd", "C=8"), ("pd", "C=32"), ("pdv", "C=32")}
    assert ahead[0] == ("pdv", "C=32")
    # What died in one of eight blocks is not compared.
    behind = [(c.candidate, c.load) for c in failure_modes(analysis)]
    assert behind == [("pdv", "C=8"), ("pdv", "C=2")]  # the largest lag first
    assert len(rows["valley.csv"]) == 6 * 3
    assert [row["choice"] for row in rows["recommendation.csv"]] == ["unified", "pd", "pdv"]


def test_the_cause_is_the_group_that_changed_most() -> None:
    truth = Truth(
        candidates=("a", "b"),
        concurrencies=(4,),
        tokens=16,
        rate=lambda name, load: 400.0 if name == "a" else 200.0,
        share=lambda name, load: 0.1 if name == "a" else 0.7,
    )
    analysis = analyse(truth.in_memory())
    for names in (("a", "b"), ("b", "a")):
        cause = analysis.comparison("shipped", "C=4", *names).cause
        assert cause is not None
        assert cause.group == "hand-over"  # half of the orchestration
        assert (cause.group_ms > cause.group_ms_reference) == (names[0] == "b")
        assert (cause.ms_per_token > cause.ms_per_token_reference) == (names[0] == "b")
        assert ("more per token for hand-over" in cause.text) == (names[0] == "b")


def test_tables_without_lines_have_a_header(tmp_path: Path) -> None:
    truth = Truth(candidates=("a", "b"), concurrencies=(1,), tokens=8, blocks=1, twin=False)
    for path in write_tables(analyse(truth.in_memory()), tmp_path):
        header = path.read_text(encoding="utf-8").splitlines()[0].split(",")
        assert header[0] == "schema_version"
        assert len(header) > 3


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    truth = Truth(candidates=("a", "b"), concurrencies=(1,), tokens=8, blocks=1)
    with pytest.raises(ResultsError, match="file"):
        write_tables(analyse(truth.in_memory()), tmp_path / "file" / "x")
