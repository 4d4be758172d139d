"""Handoffs: percentiles, reports that add up and can be subtracted, and what engines record."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from engine_driver import Request, make_worker, run
from hypothesis import given
from hypothesis import strategies as st
from split_engine import make_split
from tiny_model import VOCABULARY, TinyPair

from pdv_mp.lanes.stamps import BatchStamps
from pdv_mp.wire.frames import Stamps
from pdv_mp.workers.handoffs import (
    BUSY,
    COUNTS,
    PARTS,
    SAMPLES_WAITING,
    Handoffs,
    Samples,
    between,
    combine,
    percentile,
    report,
    summary,
)
from pdv_mp.workers.trace import EDGES


def requests(count: int, tokens: int = 12) -> list[Request]:
    rng = np.random.default_rng(3)
    return [
        Request(tuple(rng.integers(1, VOCABULARY, 20).tolist()), max_tokens=tokens)
        for _ in range(count)
    ]


@given(
    values=st.lists(st.integers(1, 10**12), min_size=1, max_size=300), percent=st.floats(0.1, 100)
)
def test_percentiles_are_right_to_the_width_of_a_bucket(values: list[int], percent: float) -> None:
    samples = Samples(("wire",))
    for value in values:
        samples.add(value)
    found = samples.as_dict()["wire"]
    exact = np.percentile(values, percent, method="inverted_cdf")
    assert percentile(found["buckets"], percent) == pytest.approx(exact, rel=0.023)
    assert summary(found)["n"] == len(values)
    assert found["total_ns"] == sum(values)


def test_what_waits_to_be_counted_is_bounded() -> None:
    samples = Samples(("inbox", "batch"))
    for value in range(3 * SAMPLES_WAITING // 2):
        samples.add(value, 2 * value)
        assert len(samples._waiting) < SAMPLES_WAITING
    found = samples.as_dict()
    assert sum(found["batch"]["buckets"].values()) == 3 * SAMPLES_WAITING // 2
    assert found["batch"]["total_ns"] == 2 * found["inbox"]["total_ns"]


def test_reports_add_up_and_can_be_subtracted() -> None:
    one, other = Handoffs(), Handoffs()
    for offset, handoffs in ((0, one), (100, other)):
        handoffs.received("draft>verify", Stamps(offset, 10, 1000 + offset, 1010 + offset, 64))
        handoffs.waits("draft>verify", 1010 + offset)
        handoffs.begun("verify", 1100 + offset, 1200 + offset)
    before = one.as_dict()
    both = report(combine([(before, 1), (other.as_dict(), 1)]))
    found = both["draft>verify"]
    assert (found["messages"], found["bytes"]) == (2, 128)
    assert found["parts"]["wire"]["total_ns"] == 990 + 1090
    assert {part: entry["n"] for part, entry in found["parts"].items()} == dict.fromkeys(
        ("encode", "wire", "decode", "inbox", "batch", "busy"), 2
    )
    for _ in range(3):
        one.received("draft>verify", Stamps(0, 10, 510, 520, 32))
    later = between(before, one.as_dict())["draft>verify"]
    assert (later["messages"], later["bytes"]) == (3, 96)
    assert set(later["parts"]) == {"encode", "wire", "decode", "busy"}
    assert later["parts"]["wire"]["mean_us"] == 0.5
    assert later["parts"]["wire"]["p50_us"] == pytest.approx(0.5, rel=0.03)


def test_what_a_replaced_process_has_forgotten_is_missing_and_not_negative() -> None:
    def edges(buckets: dict[str, int], total_ns: int) -> dict[str, Any]:
        counts = dict.fromkeys(COUNTS, 0)
        return {
            "draft>verify": {
                **counts,
                "parts": {"wire": {"total_ns": total_ns, "buckets": buckets}},
            }
        }

    forgotten = between(edges({"10": 3, "12": 1}, 9000), edges({"10": 1}, 2000))
    assert forgotten["draft>verify"]["parts"] == {}
    some = between(edges({"10": 3, "12": 1}, 9000), edges({"10": 1, "12": 2}, 8000))
    assert some["draft>verify"]["parts"]["wire"]["n"] == 1


def test_time_in_which_the_worker_computes_something_else_is_no_part_of_a_handoff() -> None:
    handoffs = Handoffs()
    handoffs.waits("verify>draft", 1000)
    handoffs.begun("prefill", 1100, 1150)
    handoffs.ended("prefill", 1100, 5100)
    handoffs.begun("draft", 5300, 5350)
    parts = handoffs.as_dict()["verify>draft"]["parts"]
    assert parts["inbox"]["total_ns"] == 300
    assert parts["batch"]["total_ns"] == 50


def test_a_message_that_waits_for_a_busy_receiver_says_so() -> None:
    handoffs = Handoffs()
    handoffs.ended("verify", 1000, 5000)
    handoffs.received("front>verify", Stamps(1990, 2000, 5100, 5110))
    handoffs.received("front>verify", Stamps(5990, 6000, 6100, 6110))
    parts = handoffs.as_dict()["front>verify"]["parts"]
    assert parts["wire"]["total_ns"] == 3100 + 100
    assert parts[BUSY]["total_ns"] == 3000
    order, batch = Stamps(10, 20, 30, 40), BatchStamps(100, 110, 500)
    handoffs.picked("verify>prefill", order, batch)
    handoffs.returned("prefill>verify", Stamps(600, 610, 620, 630), batch)
    handoffs.picked("verify>prefill", Stamps(300, 310, 550, 560), BatchStamps(600, 610, 900))
    parts = handoffs.as_dict()["verify>prefill"]["parts"]
    assert parts["wire"]["total_ns"] == 10 + 240
    assert parts[BUSY]["total_ns"] == 190


def test_an_order_of_several_prompts_is_one_message() -> None:
    handoffs = Handoffs()
    order, batch = Stamps(10, 20, 30, 40), BatchStamps(100, 110, 500)
    handoffs.picked("verify>prefill", order, batch)
    handoffs.picked("verify>prefill", order, BatchStamps(600, 610, 900), busy_ns=400)
    parts = handoffs.as_dict()["verify>prefill"]["parts"]
    assert sum(parts["wire"]["buckets"].values()) == 1
    assert parts["inbox"]["total_ns"] == 60 + 160


def test_a_pause_ends_what_follows_from_results() -> None:
    handoffs = Handoffs()
    handoffs.ended("verify", 0, 1000)
    handoffs.follows("verify>front", 1300)
    handoffs.paused()
    handoffs.follows("verify>front", 9000)
    assert handoffs.as_dict()["verify>front"]["parts"]["publish"]["total_ns"] == 300


def test_stages_of_one_process_hand_over_without_messages(tiny_pair: TinyPair) -> None:
    worker = make_worker(tiny_pair.verifier, tiny_pair.draft, max_model_len=64)
    run(worker, requests(6), np.random.default_rng(0))
    found = report(msgpack.unpackb(msgpack.packb(worker.info()["handoffs"])))
    assert set(found) == {"verify>prefill", "prefill>verify", "verify>draft", "draft>verify"}
    totals = worker.batches.totals()
    drafted = totals["draft"]["batches"]
    assert 0 < found["verify>draft"]["local"] < totals["verify"]["batches"]
    assert found["draft>verify"]["local"] == drafted
    assert found["draft>verify"]["parts"]["inbox"]["n"] == drafted
    for edge in found.values():
        assert edge["messages"] == edge["bytes"] == 0
        assert set(edge["parts"]) <= {"inbox", "batch", "publish"}


def test_lanes_hand_over_by_messages(tiny_pair: TinyPair) -> None:
    worker = make_split(
        tiny_pair.verifier, tiny_pair.draft, ("prefill", "draft"), np.random.default_rng(5)
    )
    run(worker, requests(6), np.random.default_rng(0))
    found = report(worker.info()["handoffs"])
    assert set(found) == {edge for edge in EDGES if "front" not in edge}
    totals = worker.batches.totals()
    for edge, stage in (("draft>verify", "draft"), ("prefill>verify", "prefill")):
        assert found[edge]["messages"] == totals[stage]["batches"]
        assert found[edge]["bytes"] > 50 * found[edge]["messages"]
        assert found[edge]["local"] == 0
        assert found[edge]["parts"]["publish"]["n"] == found[edge]["messages"]
    assert found["verify>draft"]["parts"]["wire"]["n"] == totals["draft"]["batches"]
    assert found["verify>prefill"]["parts"]["inbox"]["n"] == 6
    for edge in found.values():
        for part in edge["parts"].values():
            assert part["total_ns"] >= 0
    assert set(found["draft>verify"]["parts"]) == {*PARTS, BUSY}


def test_the_record_of_batches_has_their_idle_time(tiny_pair: TinyPair) -> None:
    worker = make_worker(tiny_pair.verifier, tiny_pair.draft, max_model_len=64)
    run(worker, requests(4), np.random.default_rng(0))
    before = None
    for batch in worker.batches:
        assert batch.groups == 1
        assert batch.idle_ns == (0 if before is None else batch.picked_ns - before.ended_ns)
        before = batch
    totals = worker.batches.totals()
    counters = worker.counters
    rejected = counters.drafted_tokens - counters.accepted_tokens
    assert totals["verify"]["discarded"] == rejected > 0
    for stage, total in totals.items():
        chosen = [batch for batch in worker.batches if batch.stage == stage]
        assert total["batches"] == len(chosen)
        assert total["rows"] == sum(batch.rows for batch in chosen)
        assert total["discarded"] == sum(batch.discarded for batch in chosen)
        assert total["idle_ns"] == sum(batch.idle_ns for batch in chosen)
        assert total["compute_ns"] == sum(b.ended_ns - b.started_ns for b in chosen)
