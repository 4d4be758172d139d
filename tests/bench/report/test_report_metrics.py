"""``bench.report.metrics`` and ``cells``: what counts in a window, and nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import SECOND, make_results

from bench.report.analysis import analyse
from bench.report.metrics import measure
from bench.report.states import GROUPS, ORCHESTRATION_GROUPS, group_of, is_orchestration, phase_of
from bench.results.records import SCHEMA_VERSION, CellRecord, Objective, RequestRecord
from bench.results.store import ResultsError
from bench.statistics import paired_ratio
from pdv_mp.timeline import STATES, orchestration_share

MS = 1_000_000
WINDOW = 100 * MS


def request(arrival: int, events: list[tuple[int, int]], **fields: Any) -> RequestRecord:
    """Times in ms. Whole unless ``fields`` say otherwise."""
    count = sum(n for _, n in events)
    ended = fields.pop("ended", events[-1][0] if events else 1000)
    return RequestRecord(
        client=0,
        prompt=0,
        prompt_tokens=3,
        max_tokens=max(count, 1),
        seed=0,
        arrival_ns=arrival * MS,
        sent_ns=arrival * MS,
        ended_ns=ended * MS,
        events=[(at * MS, n) for at, n in events],
        ids=[1] * count,
        drafted=[0] * count,
        **{"finish": "length", **fields},
    )


def cell(**fields: Any) -> CellRecord:
    values = {"followed": False, "block": 1, "window_ns": WINDOW, **fields}
    return CellRecord(
        schema_version=SCHEMA_VERSION,
        id="x",
        pair="p",
        candidate="c",
        load="l",
        order=0,
        started="",
        **values,
    )


CUT = {"cut_off": True, "finish": "abort", "ended": 101}

REQUESTS = [
    request(-30, [(-10, 1), (20, 4), (40, 3)]),  # began in the ramp, ends in the window
    request(10, [(15, 1), (35, 2)]),  # all of it in the window
    request(-40, [(-20, 2), (-5, 1)]),  # over before
    request(50, [(80, 1), (99, 5)], **CUT),  # cut off after its first token
    request(30, [], **CUT),  # still waits for its first token
    request(-60, [(100, 7)], **CUT),  # its first token comes at the very end: too late
    request(60, [(70, 9)], finish=None, error="lane_failed"),  # its tokens were delivered
    request(5, [(6, 1)]),  # a single token: no TPOT
]


def test_what_counts_in_a_window() -> None:
    found = measure(cell(), REQUESTS, Objective())
    assert found.tokens == 4 + 3 + 1 + 2 + 1 + 5 + 9 + 1
    assert found.events == 8
    assert found.tokens_per_s == pytest.approx(26 / 0.1)
    assert found.completed == 3
    assert found.ttft_ms.tolist() == pytest.approx([5, 30, 10, 1])
    assert found.e2e_ms.tolist() == pytest.approx([70, 25, 1])
    assert found.tpot_ms.tolist() == pytest.approx([(70 - 20) / 7, 20 / 2])
    assert found.inter_event_ms.tolist() == pytest.approx([30, 20, 20, 19])
    assert (found.waiting.count, found.waiting.oldest_ms) == (2, pytest.approx(160))
    assert (found.running.count, found.running.oldest_ms) == (3, pytest.approx(160))
    assert found.errors == {"lane_failed": 1}
    assert found.followed is None


@pytest.mark.parametrize(
    ("objective", "good"),
    [
        (Objective(), 3),
        (Objective(ttft_ms=10), 2),
        (Objective(tpot_ms=8), 2),  # a single token keeps any TPOT
        (Objective(e2e_ms=30), 2),
        (Objective(ttft_ms=3, tpot_ms=8, e2e_ms=30), 1),
    ],
)
def test_a_good_request_meets_all_of_the_objective(objective: Objective, good: int) -> None:
    assert measure(cell(), REQUESTS, objective).good == good


def test_speculation_is_that_of_all_requests_that_were_open() -> None:
    def spoke(cycles: int, *at: int) -> dict[str, Any]:
        told = {"cycles": cycles, "drafted": 4 * cycles, "accepted": sum(at)}
        return {"speculation": {**told, "accepted_per_pos": list(at)}}

    found = measure(
        cell(),
        [
            request(-30, [(20, 4)], **spoke(3, 2, 1)),
            request(0, [(20, 4)], **spoke(2, 1, 1, 1, 1), **CUT),
            request(-30, [(-5, 4)], **spoke(100, 100)),  # over before
            request(0, [(20, 4)]),  # says nothing
        ],
        Objective(),
    ).drafts
    assert (found.cycles, found.drafted, found.accepted) == (5, 20, 7)
    assert found.accepted_at == (3, 2, 1, 1)


def test_timelines_are_taken_apart() -> None:
    states = {
        "front.text": 1,
        "front>verify.wire": 2,
        "prefill.queue": 3,
        "verify>prefill.encode": 4,
        "prefill.compute": 5,
        "prefill>verify.decode": 6,
        "verify.inbox": 7,
        "draft>verify.wire": 8,
        "draft.compute": 9,
        "verify.busy": 10,
        "verify.preempted": 11,
        "tokenizer.compute": 12,
    }
    timeline = {
        "e2e_ns": sum(states.values()) * MS,
        "states": {name: {"n": 1, "ns": spent * MS} for name, spent in states.items()},
    }
    found = measure(
        cell(followed=True, block=0), [request(0, [(20, 4)], timeline=timeline)], Objective()
    ).followed
    assert found is not None
    assert found.prefill_ms.tolist() == [4 + 5 + 6]
    assert found.decode_ms.tolist() == [7 + 8 + 9 + 10]
    share = found.orchestration_ns.sum() / found.e2e_ns.sum()
    assert share == pytest.approx(orchestration_share(timeline))
    assert share == pytest.approx((1 + 2 + 4 + 6 + 7 + 8) / 78)
    assert found.tokens == 4


def test_every_state_has_a_group_and_orchestration_is_some_of_them() -> None:
    for state in STATES:
        assert group_of(state) in GROUPS
        assert (group_of(state) in ORCHESTRATION_GROUPS) == is_orchestration(state)
        assert phase_of(state) in ("prefill", "decode", None)
    assert {group_of(state) for state in STATES} == set(GROUPS)
    for state in ("verify.dreaming", "front.compute", "verify", ""):
        with pytest.raises(ResultsError, match="not a state"):
            group_of(state)


def test_what_is_no_message_of_the_protocol_is_named() -> None:
    with pytest.raises(ResultsError, match="cell x"):
        measure(cell(), [request(0, [(1, 1)], speculation={"cycles": 1})], Objective())
    with pytest.raises(ResultsError, match="window of 0 ns"):
        measure(cell(window_ns=0), [], Objective())
    assert measure(cell(), [], Objective()).tokens == 0


def raw(folder: Path, place: tuple[str, str]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The counted cells of a candidate under a load and their requests, read without our code."""
    found = []
    for line in (folder / "cells.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if (record["candidate"], record["load"]) == place and record["block"] > 0:
            path = folder / "requests" / f"{record['id']}.jsonl"
            lines = path.read_text(encoding="utf-8").splitlines()
            found.append((record, [json.loads(line) for line in lines]))
    return found


@pytest.mark.parametrize("place", [("pd", "C=4"), ("unified (again)", "C=1")])
def test_an_independent_reader_of_the_lines_counts_the_same(
    tmp_path: Path, place: tuple[str, str]
) -> None:
    objective = Objective(e2e_ms=40)
    folder = make_results(tmp_path, concurrencies=(1, 4), tokens=24, objective=objective)
    found = analyse(folder).cell("shipped", *place)
    cells = raw(tmp_path, place)
    assert found.blocks == found.measured == len(cells) == 8
    logs, waits, lasted, steps, drafted, accepted, flagged = [], [], [], [], 0, 0, 0
    cycles, second, seconds = 0, 0, 0.0
    for record, requests in cells:
        window = record["window_ns"]
        tokens = 0
        for asked in requests:
            for at, count in asked["events"]:
                tokens += count * (0 <= at < window)
            first, last = (asked["events"] or [[window, 0]])[0][0], asked["ended_ns"]
            if 0 <= first < window:
                waits.append((first - asked["arrival_ns"]) / 1e6)
            if 0 <= last < window and asked["finish"] == "length":
                lasted.append((last - asked["arrival_ns"]) / 1e6)
                if len(asked["ids"]) > 1:
                    steps.append((last - first) / 1e6 / (len(asked["ids"]) - 1))
            if last >= 0:
                drafted += asked["speculation"]["drafted"]
                accepted += asked["speculation"]["accepted"]
                flagged += sum(asked["drafted"])
                cycles += asked["speculation"]["cycles"]
                second += asked["speculation"]["accepted_per_pos"][1]
        seconds += window / SECOND
        logs.append(math.log(tokens / (window / SECOND)))
        assert found.block_throughput[record["block"]] == pytest.approx(tokens / (window / SECOND))
    assert found.throughput is not None
    assert found.throughput.value == pytest.approx(math.exp(sum(logs) / len(logs)))
    for latency, values in ((found.ttft, waits), (found.e2e, lasted), (found.tpot, steps)):
        assert latency.mean is not None
        assert latency.p50 is not None
        assert latency.samples == len(values)
        assert latency.mean.value == pytest.approx(sum(values) / len(values))
        assert latency.p50.value == pytest.approx(np.median(values))
    assert found.goodput is not None
    assert found.requests_per_s is not None
    assert found.requests_per_s.value == pytest.approx(len(lasted) / seconds)
    good = sum(value <= 40 for value in lasted)
    assert 0 < good < len(lasted)
    assert found.goodput.value == pytest.approx(good / seconds)
    rate, length = found.speculation.acceptance_rate, found.speculation.acceptance_length
    assert rate is not None
    assert length is not None
    assert length.value == pytest.approx(1 + accepted / cycles)
    assert found.speculation.per_position[1] == pytest.approx(second / cycles)
    assert (found.speculation.drafted, found.speculation.accepted) == (drafted, accepted)
    assert flagged == accepted
    assert rate.value == pytest.approx(flagged / drafted)


def test_latencies_are_compared_block_by_block(tmp_path: Path) -> None:
    analysis = analyse(make_results(tmp_path, concurrencies=(4,), tokens=24, twin=False))
    means: dict[str, list[float]] = {}
    for name in ("pd", "pdv"):
        for _, requests in raw(tmp_path, (name, "C=4")):
            ended = [r for r in requests if r["ended_ns"] >= 0 and r["finish"] == "length"]
            lasted = [(r["ended_ns"] - r["arrival_ns"]) / 1e6 for r in ended]
            means.setdefault(name, []).append(sum(lasted) / len(lasted))
    found = analysis.comparison("shipped", "C=4", "pd", "pdv").e2e_ratio
    expected = paired_ratio(means["pd"], means["pdv"], analysis.comparisons_alpha)
    assert found is not None
    assert (found.estimate, found.low) == pytest.approx((expected.estimate, expected.low))


def test_few_samples_have_no_p99(tmp_path: Path) -> None:
    analysis = analyse(make_results(tmp_path, concurrencies=(1,), twin=False, tokens=24))
    latency = analysis.cell("shipped", "pd", "C=1").e2e
    assert 72 <= latency.samples < 368
    assert latency.p95 is not None
    assert latency.p99 is None
