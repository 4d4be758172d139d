"""``bench.topologies``: equal servers are told apart in hardly any run, the table is what the raw
lines add up to, a server that dies is a cell that failed."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import tiny_arguments
from tiny_model import VOCABULARY, TinyPair

from bench.closed_loop import Ask, Workload
from bench.servers import Server
from bench.statistics import ALPHA, SequentialPlan
from bench.topologies import Comparison, Plan, Results, main
from bench.topologies_table import (
    GROUPS,
    Cell,
    compare,
    group_ns,
    rate_table,
    time_table,
)
from pdv_mp import timeline

NAMES = ("unified", "baseline", "pd", "pdv", "unified (again)")
CONCURRENCIES = (1, 8, 32)


def cells_of(rates: dict[tuple[str, int], np.ndarray]) -> list[Cell]:
    """Cells of a second each with these rates, by block from 1."""
    return [
        Cell(block + 1, 0, name, concurrency, False, None, 1.0, int(rate * 1000))
        for (name, concurrency), found in rates.items()
        for block, rate in enumerate(found)
    ]


def noisy(draw: np.random.Generator, blocks: int, ratios: dict[str, float]) -> list[Cell]:
    rates = {}
    for concurrency in CONCURRENCIES:
        level = np.exp(draw.normal(5, 0.3, blocks))
        for name in NAMES:
            noise = np.exp(draw.normal(0, 0.03, blocks))
            rates[name, concurrency] = level * noise * ratios.get(name, 1.0)
    return cells_of(rates)


def verdicts(cells: list[Cell]) -> list[str]:
    rows = compare(cells, NAMES, CONCURRENCIES, ALPHA, NAMES[-1])
    return [row["verdict"] for row in rows if row["topology"] != NAMES[0]]


def test_equal_servers_have_no_winner_in_95_percent_of_runs() -> None:
    draw, runs = np.random.default_rng(1), 400
    found = [verdicts(noisy(draw, 8, {})) for _ in range(runs)]
    declared = sum(any(text in ("ahead", "behind") for text in run) for run in found)
    assert declared / runs <= 0.05
    assert all("no difference shown (" in text for run in found for text in run if len(text) > 6)


def test_real_differences_are_said() -> None:
    cells = noisy(np.random.default_rng(2), 12, {"pd": 1.2, "baseline": 0.8})
    rows = compare(cells, NAMES, CONCURRENCIES, ALPHA, NAMES[-1])
    said = {(row["topology"], row["concurrency"]): row["verdict"] for row in rows}
    for concurrency in CONCURRENCIES:
        assert said["unified", concurrency] == "reference"
        assert said["pd", concurrency] == "ahead"
        assert said["baseline", concurrency] == "behind"
        assert "no difference" in said["pdv", concurrency]
    found = {row["alpha"] for row in rows if row["topology"] != "unified"}
    assert found == {ALPHA / 12}


def test_a_difference_within_the_noise_of_equal_servers_is_none() -> None:
    level = np.array([100.0, 101, 99, 100, 102, 100, 99, 100])
    rates = {("unified", 1): level, ("pd", 1): level * 1.1, ("unified (again)", 1): level * 1.2}
    cells = cells_of(rates)
    pd, again = compare(cells, ["unified", "pd", "unified (again)"], [1], ALPHA, NAMES[-1])[1:]
    assert pd["ratio_low"] > 1
    assert "no difference shown (20" in pd["verdict"]
    assert again["verdict"] == "ahead"  # so the reader sees that something is wrong
    alone = compare(cells, ["unified", "pd"], [1], ALPHA, None)
    assert alone[1]["verdict"] == "ahead"


def test_failed_cells_are_left_out_in_pairs_and_said() -> None:
    level = np.array([100.0, 101, 99, 100, 102, 100, 99, 100, 100])
    cells = cells_of({("unified", 1): level, ("pd", 1): level * 2})
    cells[3] = Cell(4, 0, "unified", 1, False, "the server has ended")
    cells[-1] = Cell(9, 0, "pd", 1, False, "the server has ended")
    rows = compare(cells, ["unified", "pd"], [1], ALPHA, None)
    assert [row["failed"] for row in rows] == [1, 1]
    assert rows[1]["verdict"] == "7 blocks are too few"
    assert rows[1]["ratio"] == pytest.approx(2)
    assert "too few · 1 failed" in rate_table(rows, "unified")
    nothing = compare([], ["unified", "pd"], [1], ALPHA, None)
    assert "0 blocks are too few" in rate_table(nothing, "unified")
    assert time_table(nothing).count("–") == 2 * (1 + len(GROUPS))


def test_every_state_is_in_one_group() -> None:
    for name in timeline.STATES:
        spent = group_ns({name: 7})
        assert sum(spent[group] for group in GROUPS) == 7
        assert spent["queue"] == (7 if name.endswith(".queue") else 0)
    assert group_ns({"draft>verify.wire": 5})["messages"] == 5
    assert group_ns({"draft.busy": 5})["waiting"] == 5


PROMPTS = [
    [(7 * number + step) % (VOCABULARY - 1) + 1 for step in range(12)] for number in range(9)
]


def tiny_plan(blocks: int, concurrencies: tuple[int, ...], again: str | None = None) -> Plan:
    return Plan(
        concurrencies=concurrencies,
        workload=Workload(PROMPTS, 12),
        sequence=SequentialPlan(blocks),
        ramp=0.1,
        seconds=0.4,
        budget=100.0,
        precision=None,
        again=again,
    )


class Simulated(Comparison):
    """Rates that differ by ``noise`` from block to block, in place of measured ones."""

    noise = 0.01

    def _measure(self, name: str, place: dict[str, Any]) -> tuple[Cell, None]:
        draw = np.random.default_rng([place["block"], place["concurrency"], len(name)])
        rate = 100_000 * np.exp(draw.normal(0, self.noise))
        return Cell(**place, seconds=1.0, tokens=int(rate)), None


@pytest.mark.parametrize(
    ("noise", "budget", "blocks", "stopped"),
    [
        (0.005, 100.0, 8, "all ratios were known well enough"),
        (0.01, 100.0, 16, "all ratios were known well enough"),
        (0.1, 100.0, 30, ""),
        (0.1, 1e-9, 0, "the budget of 1e-09 s was spent"),
    ],
)
def test_a_run_stops_when_it_should(
    tmp_path: Path, noise: float, budget: float, blocks: int, stopped: str
) -> None:
    plan = dataclasses.replace(tiny_plan(30, (1, 8)), budget=budget, precision=0.02)
    servers = {name: Server(name, {}) for name in ("unified", "pd", "pdv")}
    with Results(tmp_path, {}) as results:
        comparison = Simulated(servers, plan, results)
        comparison.noise = noise
        comparison.run()
    assert (comparison.blocks, comparison.stopped) == (blocks, stopped)
    alphas = {row["alpha"] for row in comparison.rows() if row["topology"] != "unified"}
    if stopped.startswith("all"):
        assert alphas == {plan.sequence.alpha_at(blocks) / 4}
        for row in comparison.rows():
            if row["ratio"]:
                assert row["ratio_high"] / row["ratio_low"] <= 1.02**2
    elif blocks:
        assert alphas == {plan.sequence.alpha_at_end(30, looked=True) / 4}


def tiny_options(pair: TinyPair) -> dict[str, Any]:
    flags = iter(tiny_arguments(pair))
    return {name.removeprefix("--"): value for name, value in zip(flags, flags, strict=True)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_table_is_what_the_raw_lines_add_up_to(
    tiny_pair: TinyPair, run_place: object, tmp_path: Path
) -> None:
    servers = {name: Server(name, tiny_options(tiny_pair)) for name in ("unified", "pdv")}
    plan = tiny_plan(2, (1, 3))
    try:
        with Results(tmp_path, {}) as results:
            comparison = Comparison(servers, plan, results)
            comparison.run()
    finally:
        for server in servers.values():
            server.close()
    assert comparison.blocks == 2
    assert not [cell.failed for cell in comparison.cells if cell.failed]
    counted: dict[Any, int] = {}
    for row in lines(tmp_path / "requests.jsonl"):
        inside = [n for at, n in row["events"] if 0 <= at < row["window_ns"]]
        place = (row["block"], row["topology"], row["concurrency"])
        counted[place] = counted.get(place, 0) + sum(inside)
        assert row["tokens"] == sum(count for _, count in row["events"])
    cells = lines(tmp_path / "cells.jsonl")
    assert len(cells) == len(counted) == 3 * 2 * 2
    for cell in cells:
        assert cell["tokens"] == counted[cell["block"], cell["topology"], cell["concurrency"]]
        assert bool(cell["state_ns"]) == cell["followed"] == (cell["block"] == 0)
    orders = {(c["block"], c["concurrency"], c["topology"]): c["order"] for c in cells}
    assert orders[0, 1, "unified"] != orders[1, 1, "unified"]
    for row in comparison.rows():
        name, concurrency = row["topology"], row["concurrency"]
        rates = [counted[block, name, concurrency] / 0.4 for block in (1, 2)]
        assert row["tokens_per_s"] == pytest.approx(np.median(rates))
        assert sum(row[f"{group}_share"] for group in GROUPS) == pytest.approx(1)
        assert row["messages_share"] > 0
    of = {(row["topology"], row["concurrency"]): row for row in comparison.rows()}
    expected = [counted[block, "pdv", 3] / counted[block, "unified", 3] for block in (1, 2)]
    assert of["pdv", 3]["ratio"] == pytest.approx(np.exp(np.mean(np.log(expected))))


class DeadlyWorkload(Workload):
    """The process ``victim`` is killed when the second cell's first request has ended."""

    victim = 0
    cells = 0

    def asks(self, block: int, clients: int, client: int) -> Iterator[Ask]:
        DeadlyWorkload.cells += client == 0
        cell = DeadlyWorkload.cells
        for number, ask in enumerate(super().asks(block, clients, client)):
            if (cell, client, number) == (2, 0, 1):
                os.kill(self.victim, signal.SIGKILL)
            yield ask


@pytest.mark.slow
def test_a_server_that_dies_costs_a_cell_and_is_started_again(
    tiny_pair: TinyPair, run_place: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = {name: Server("unified", tiny_options(tiny_pair)) for name in ("first", "second")}
    plan = dataclasses.replace(tiny_plan(1, (2,)), workload=DeadlyWorkload(PROMPTS, 12))
    try:
        victim = servers["second"].ensure().pids["launcher"]
        monkeypatch.setattr(DeadlyWorkload, "victim", victim)
        with Results(tmp_path, {}) as results:
            comparison = Comparison(servers, plan, results)
            comparison.run()
    finally:
        for server in servers.values():
            server.close()
    assert comparison.blocks == 1
    (failed,) = (cell for cell in comparison.cells if cell.failed)
    assert (failed.block, failed.topology, failed.failed) == (0, "second", "the server has ended")
    assert lines(tmp_path / "cells.jsonl")[1]["failed"] == failed.failed
    rows = {row["topology"]: row for row in comparison.rows()}
    assert [rows[name]["failed"] for name in servers] == [0, 1]
    assert [rows[name]["blocks"] for name in servers] == [1, 1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--concurrency", "1,x"],
        ["--concurrency", "4,4"],
        ["--topology", "pd,pd"],
        ["--topology", "pd", "--no-again"],
        ["--budget", "soon"],
        ["--budget", "0"],
        ["--option", "wait"],
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


COMMAND = (sys.executable, "-m", "bench.topologies", "--topology", "unified", "--tokens", "8")
SHORT = ("--seconds", "0.3", "--ramp", "0.1", "--concurrency", "2", "--option", "threads=1")


@pytest.mark.slow
def test_a_short_run(run_place: object, tmp_path: Path) -> None:
    command = [*COMMAND, *SHORT, "--blocks", "2", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "| unified (again) | 2 |" in done.stdout
    with (tmp_path / "topologies.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["topology"] for row in rows] == ["unified", "unified (again)"]
    facts = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert facts["schema_version"] == 1
    assert facts["concurrencies"] == [2]


@pytest.mark.slow
def test_ctrl_c_ends_it_with_what_is_known(run_place: object, tmp_path: Path) -> None:
    command = [*COMMAND, *SHORT, "--blocks", "1000", "--output", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        while not run.stderr.readline().startswith("block 1 of"):
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        output = run.stdout.read()
        run.stderr.read()
    assert run.returncode == 130
    assert "interrupted" in output
    assert "| unified (again) | 2 |" in output
