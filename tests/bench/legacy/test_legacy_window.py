"""The legacy window: both metrics are what an independent reader counts, the apportioning adds up,
admission alone makes the large ratio where it alone differs."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from made_legacy import (
    ALONE,
    CAPACITY,
    REQUESTS,
    SLOTS,
    WINDOW,
    made_facts,
    served,
    write_legacy,
)
from made_results import make_results
from tiny_model import TinyPair

from bench.legacy.apportioning import apportion
from bench.legacy.command import legacy
from bench.legacy.counts import is_completed
from bench.legacy.measuring import requests_of
from bench.legacy.overload import OverloadError, first_request, make_overload
from bench.legacy.results import Legacy, has_raw, rebuild
from bench.results.store import ResultsError

CORNERS = [(topology, admission) for topology in "rc" for admission in "ub"]
logs = st.floats(-4, 4)


@given(st.tuples(logs, logs, logs, logs))
def test_what_is_apportioned_adds_up(values: tuple[float, ...]) -> None:
    rates = {corner: math.exp(value) for corner, value in zip(CORNERS, values, strict=True)}
    parts = apportion(rates, ("r", "u"), ("c", "b"))
    assert parts.admission + parts.topology == pytest.approx(parts.total, abs=1e-9)
    alone = parts.admission_alone + parts.topology_alone
    assert alone + parts.interaction == pytest.approx(parts.total, abs=1e-9)
    # Exchanging the names of the two factors exchanges their parts.
    turned = {(admission, topology): rate for (topology, admission), rate in rates.items()}
    other = apportion(turned, ("u", "r"), ("b", "c"))
    assert other.topology == pytest.approx(parts.admission, abs=1e-9)
    assert other.interaction == pytest.approx(parts.interaction, abs=1e-9)


def test_factors_that_act_alone_get_all_of_it() -> None:
    rates = {(t, a): {"r": 1.0, "c": 3.0}[t] * {"u": 1.0, "b": 7.0}[a] for t, a in CORNERS}
    parts = apportion(rates, ("r", "u"), ("c", "b"))
    assert parts.admission == pytest.approx(math.log(7))
    assert parts.topology == pytest.approx(math.log(3))
    assert parts.interaction == pytest.approx(0, abs=1e-12)
    assert parts.admission_share == pytest.approx(math.log(7) / math.log(21))


def test_how_far_the_first_request_gets() -> None:
    expected = first_request(WINDOW, SLOTS, CAPACITY, ALONE, REQUESTS)
    first = max(sum(count for _, count in r.events) for r in served(SLOTS, CAPACITY))
    assert first == pytest.approx(expected, rel=0.1)
    # Alone on a server with room for all, and on one that a single request fills.
    assert first_request(10, 4, 1e9, 5, 2) == pytest.approx(50)
    assert first_request(10, 4, 100, 500, 1) == pytest.approx(1000)


def test_the_load_overloads_as_much_as_it_is_to() -> None:
    load = make_overload(
        window=8, slots=128, capacities=[1000, 2250], alone=500, longest=2000, overload=5.5
    )
    assert load.capacity == pytest.approx(1500)
    assert (load.requests, load.tokens, load.rate) == (192, 344, 48)
    assert load.overload == pytest.approx(5.5, rel=0.01)
    assert load.first_tokens < load.tokens
    short = make_overload(
        window=60, slots=128, capacities=[1500], alone=500, longest=1000, overload=5.5
    )
    assert short.tokens == 1000
    assert short.overload == pytest.approx(5.5)
    with pytest.raises(OverloadError, match="longer --window"):
        make_overload(window=1, slots=4000, capacities=[100], alone=9, longest=99, overload=5.5)


def test_requests_arrive_at_random_in_the_first_half_and_are_the_same_for_all() -> None:
    facts, prompts = made_facts(), [[1, 2], [3, 4], [5, 6]]
    first = requests_of(facts, prompts, 1)
    assert first == requests_of(facts, prompts, 1)
    assert first.arrivals != requests_of(facts, prompts, 2).arrivals
    assert list(first.arrivals) == sorted(first.arrivals)
    assert first.arrivals[-1] < facts.window / 2
    assert {ask.max_tokens for ask in first.asks} == {facts.tokens}
    assert [ask.prompt for ask in first.asks] == list(range(len(first.prompts)))
    counts = [len(requests_of(facts, prompts, block).arrivals) for block in range(1, 201)]
    assert sum(counts) / 200 == pytest.approx(REQUESTS, abs=4 * math.sqrt(REQUESTS / 200))


def written(folder: Path) -> Legacy:
    return msgspec.json.decode((folder / "legacy.json").read_bytes(), type=Legacy)


Counted = dict[tuple[int, str], tuple[int, int, float, float]]


def recount(folder: Path) -> Counted:
    """Offered, completed, legacy and honest tokens/s by block and candidate, from the lines."""
    found = {}
    lines = (folder / "legacy" / "cells.jsonl").read_text(encoding="utf-8").splitlines()
    for cell in map(json.loads, lines):
        path = folder / "legacy" / "requests" / f"{cell['id']}.jsonl"
        requests = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        end = cell["window_ns"]
        done = [
            r
            for r in requests
            if len(r["ids"]) == r["max_tokens"] and r["ended_ns"] < end and not r["cut_off"]
        ]
        tokens = sum(n for r in requests for at, n in r["events"] if 0 <= at < end)
        legacy_tokens = sum(r["max_tokens"] for r in done)
        rates = (legacy_tokens / end * 1e9, tokens / end * 1e9)
        found[cell["block"], cell["candidate"]] = (len(requests), len(done), *rates)
    return found


def check_recount(folder: Path) -> Counted:
    counted = recount(folder)
    with (folder / "legacy.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(counted)
    for row in rows:
        offered, completed, *rates = counted[int(row["block"]), row["candidate"]]
        assert (int(row["offered_requests"]), int(row["completed"])) == (offered, completed)
        assert float(row["legacy_tokens_per_s"]) == pytest.approx(rates[0])
        assert float(row["honest_tokens_per_s"]) == pytest.approx(rates[1])
    return counted


@pytest.mark.parametrize(
    ("changes", "completed"),
    [
        ({}, True),
        ({"ended_ns": 100}, False),  # with all its tokens, but after the window
        ({"cut_off": True}, False),
        ({"finish": "abort"}, False),
        ({"finish": None, "error": "queue_full"}, False),
    ],
)
def test_who_completed(changes: dict[str, Any], completed: bool) -> None:
    request = next(one for one in served(1, 1e6) if not one.cut_off)
    request = msgspec.structs.replace(request, **{"ended_ns": 99, **changes})
    assert is_completed(request, 100) is completed


def test_admission_alone_makes_the_large_ratio(tmp_path: Path) -> None:
    write_legacy(tmp_path)
    found = rebuild(tmp_path)
    counted = check_recount(tmp_path)
    assert counted[1, "pd, unbounded"][1] == 0
    assert counted[1, "pdv, bounded"][1] > 20
    assert found.legacy is not None
    assert found.honest is not None
    assert found.legacy_parts is not None
    assert found.legacy.at_least
    assert not found.legacy.enough_blocks
    assert found.legacy.ratio == pytest.approx(counted[1, "pdv, bounded"][1] / 0.5)
    assert found.honest.ratio == pytest.approx(1, rel=0.02)
    assert found.legacy_parts.admission_share == pytest.approx(1)
    assert found.legacy_parts.interaction == pytest.approx(0)
    assert written(tmp_path) == found
    page = (tmp_path / "legacy.md").read_text(encoding="utf-8")
    assert f"at least {found.legacy.ratio:.3g}" in page
    assert "Admission makes 100%" in page
    assert "none: 2 of the 8 blocks" in page
    assert (found.legacy.low, found.legacy.high) == (None, None)


def test_what_a_topology_does_is_not_given_to_admission(tmp_path: Path) -> None:
    write_legacy(tmp_path, blocks=1, capacities={"pd": 1000.0, "pdv": 2000.0})
    found = rebuild(tmp_path)
    assert found.honest is not None
    assert found.honest_parts is not None
    assert found.honest.ratio == pytest.approx(2, rel=0.03)
    assert (found.honest.low, found.honest.blocks) == (None, 1)
    assert found.honest_parts.topology == pytest.approx(math.log(2), rel=0.05)
    assert found.honest_parts.admission == pytest.approx(0, abs=0.05)


def test_eight_blocks_have_an_interval(tmp_path: Path) -> None:
    write_legacy(tmp_path, blocks=8)
    found = rebuild(tmp_path).honest
    assert found is not None
    assert found.enough_blocks
    assert found.low is not None
    assert found.low == pytest.approx(found.ratio)  # the blocks are all the same
    assert "none:" not in (tmp_path / "legacy.md").read_text(encoding="utf-8")


def test_a_block_without_all_four_does_not_count_and_is_said(tmp_path: Path) -> None:
    write_legacy(tmp_path, blocks=2, failed=("pdv, bounded", 2))
    found = rebuild(tmp_path)
    assert found.honest is not None
    assert found.honest.blocks == 1
    page = (tmp_path / "legacy.md").read_text(encoding="utf-8")
    assert "pdv, bounded, block 2 does not count: the server has ended." in page
    write_legacy(tmp_path / "late", blocks=2, invalid=("pd, unbounded", 1))
    late = rebuild(tmp_path / "late")
    assert late.honest is not None
    assert late.honest.blocks == 1
    write_legacy(tmp_path / "none", blocks=1, failed=("pdv, bounded", 1))
    nothing = rebuild(tmp_path / "none")
    assert nothing.legacy is nothing.honest is nothing.legacy_parts is None
    page = (tmp_path / "none" / "legacy.md").read_text(encoding="utf-8")
    assert "nothing to compare" in page


def test_other_raw_records_are_refused(tmp_path: Path) -> None:
    assert not has_raw(tmp_path)
    make_results(tmp_path / "legacy", blocks=1, candidates=("pd",), concurrencies=(1,))
    assert has_raw(tmp_path)
    with pytest.raises(ResultsError, match="holds no legacy window"):
        rebuild(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topologies", "pd"], "two different topologies"),
        (["--topologies", "pd,pd"], "two different topologies"),
        (["--topologies", "pd,nonsense"], "nonsense"),
        (["--bounded", "128"], "below --concurrency"),
        (["--window", "0"], "above zero"),
        (["--option", "max-num-seks=3"], "max_num_seqs"),
        (["--option", "max-num-seqs=3"], "max-num-seqs"),
        (["--pair", "llama"], "no such pair"),
        (["--prompt-length", "1000000"], "held-out"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(legacy, [*arguments, "--output", str(tmp_path)])
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert not list(tmp_path.iterdir())


def test_results_of_something_else_are_not_overwritten(tmp_path: Path) -> None:
    write_legacy(tmp_path, blocks=1)
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(legacy, ["--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "other options or models" in result.output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_short_run(
    run_place: object, tmp_path: Path, tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine, no cell is left out: nothing is said of its speed here.
    monkeypatch.setattr("bench.legacy.measuring.LATE_SHARE", 1.0)
    pairs = tmp_path / "pairs.yaml"
    folders = {"verifier": str(tiny_pair.verifier), "draft": str(tiny_pair.draft)}
    pairs.write_text(json.dumps({"tiny": folders}), encoding="utf-8")
    arguments = ["--pairs", str(pairs), "--output", str(tmp_path), "--blocks", "1"]
    small = ["--topologies", "unified,pd", "--window", "2s", "--concurrency", "24"]
    small += ["--bounded", "3", "--option", "threads=1"]
    result = CliRunner().invoke(legacy, [*arguments, *small])
    assert result.exit_code == 0, result.output
    counted = check_recount(tmp_path)
    assert len(counted) == 4
    assert {offered for offered, *_ in counted.values()} == {counted[1, "pd, bounded"][0]}
    found = written(tmp_path)
    assert found.legacy is not None
    assert found.honest is not None
    assert all(cell.refused == cell.errors == 0 for cell in found.cells)
    # The same command finds all of it done; a cell that is gone is measured again, and it alone.
    lines = (tmp_path / "legacy" / "cells.jsonl").read_bytes().splitlines(keepends=True)
    for kept, measured in ((lines, 0), ([*lines[:3], lines[3][:20]], 1)):
        (tmp_path / "legacy" / "cells.jsonl").write_bytes(b"".join(kept))
        again = CliRunner().invoke(legacy, [*arguments, *small])
        assert again.exit_code == 0, again.output
        assert again.stderr.count("block 1, ") == measured
        assert written(tmp_path).facts == found.facts
        assert written(tmp_path).cells[:3] == found.cells[:3]
    other = CliRunner().invoke(legacy, [*arguments, *small, "--overload", "4"])
    assert other.exit_code == 2
