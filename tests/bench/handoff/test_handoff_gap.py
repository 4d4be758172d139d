"""The gap between two topologies: its parts add up, each change goes to its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.handoff.gap import (
    OF_CONTENTION,
    PARTS,
    BatchCost,
    StageBatch,
    StageWork,
    Wall,
    covered,
    fit_costs,
    gap,
    intervals,
)

numbers = st.integers(0, 10**9)
positive = st.integers(1, 10**6)
works = st.builds(StageWork, batches=positive, rows=positive, compute_ns=numbers)
costs = st.builds(BatchCost, fixed_ns=st.floats(0, 1e6), row_ns=st.floats(0, 1e4))


@st.composite
def walls(draw: st.DrawFn) -> Wall:
    work = draw(st.dictionaries(st.sampled_from(["prefill", "draft", "verify"]), works))
    computed = sum(item.compute_ns for item in work.values())
    busy, message, rest = draw(st.integers(0, computed)), draw(numbers), draw(positive)
    return Wall(draw(positive), busy + message + rest, busy, message, work)


@given(
    reference=walls(),
    other=walls(),
    prefill=costs,
    draft=costs,
    verify=costs,
)
def test_the_parts_add_up_to_the_gap(
    reference: Wall, other: Wall, prefill: BatchCost, draft: BatchCost, verify: BatchCost
) -> None:
    fitted = {"prefill": prefill, "draft": draft, "verify": verify}
    parts = gap(reference, other, fitted)
    assert set(parts) == {*PARTS, *OF_CONTENTION}
    error = 1e-9 * sum(map(abs, parts.values())) + 1e-6
    whole = other.ns_per_token - reference.ns_per_token
    assert sum(parts[part] for part in PARTS) == pytest.approx(whole, rel=1e-6, abs=error)
    shared = sum(parts[part] for part in OF_CONTENTION)
    assert shared == pytest.approx(parts["contention"], rel=1e-6, abs=error)


def wall(**changes: object) -> Wall:
    """100 tokens in 1000 ns each: 40 verify batches of 10 rows that take 1500 ns."""
    fields = {"tokens": 100, "wall_ns": 100_000, "busy_ns": 60_000, "message_ns": 10_000}
    work = {"verify": StageWork(batches=40, rows=400, compute_ns=60_000)}
    return Wall(**{**fields, "work": work, **changes})


COST = {"verify": BatchCost(fixed_ns=1000, row_ns=50)}


def only(parts: dict[str, float], name: str, value: float, kind: str = "") -> bool:
    expected = dict.fromkeys(parts, 0.0) | {name: value} | ({kind: value} if kind else {})
    return parts == pytest.approx(expected, abs=1e-6)


def test_each_change_goes_to_its_own_part() -> None:
    assert only(gap(wall(), wall(), COST), "messages", 0)
    assert only(gap(wall(), wall(wall_ns=130_000, message_ns=40_000), COST), "messages", 300)
    assert only(gap(wall(), wall(wall_ns=130_000), COST), "waiting", 300)
    smaller = {"verify": StageWork(batches=80, rows=400, compute_ns=100_000)}
    diluted = wall(wall_ns=140_000, busy_ns=100_000, work=smaller)
    assert only(gap(wall(), diluted, COST), "dilution", 400)
    slower = {"verify": StageWork(batches=40, rows=400, compute_ns=80_000)}
    contended = wall(wall_ns=120_000, busy_ns=80_000, work=slower)
    assert only(gap(wall(), contended, COST), "contention", 200, "slower")
    overlapped = wall(wall_ns=80_000, busy_ns=40_000)
    assert only(gap(wall(), overlapped, COST), "contention", -200, "overlap")
    more = {"verify": StageWork(batches=60, rows=600, compute_ns=90_000)}
    discarded = wall(wall_ns=130_000, busy_ns=90_000, work=more)
    assert only(gap(wall(), discarded, COST), "discarded", 300)


def test_a_window_is_divided_into_computing_messages_and_neither() -> None:
    found = Wall()
    batches = [
        StageBatch("draft", 100, 200, 4),
        StageBatch("verify", 150, 300, 5),
        StageBatch("verify", 2000, 2100, 5),
    ]
    messages = [(190, 250), (290, 340), (330, 350), (900, 1100)]
    found.add((0, 1000), 10, batches, messages)
    assert (found.wall_ns, found.busy_ns, found.message_ns) == (1000, 200, 50)
    assert found.compute_ns == 250
    assert found.work == {"draft": StageWork(1, 4, 100), "verify": StageWork(1, 5, 150)}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12))
def test_covered_is_the_length_of_the_union(found: list[tuple[int, int]]) -> None:
    pairs = [(start, start + length) for start, length in found]
    points = {point for start, end in pairs for point in range(start, end)}
    assert covered(intervals(pairs)) == len(points)


def test_the_cost_of_a_batch_is_fitted_and_never_negative() -> None:
    batches = [StageBatch("verify", 0, 1000 + 50 * rows, rows) for rows in (5, 10, 40)]
    batches += [StageBatch("draft", 0, 700, 4)] * 3
    batches += [StageBatch("prefill", 0, time, rows) for rows, time in ((1, 90), (10, 80))]
    found = fit_costs(batches)
    assert found["verify"].fixed_ns == pytest.approx(1000)
    assert found["verify"].row_ns == pytest.approx(50)
    assert found["draft"] == BatchCost(700, 0)
    assert found["prefill"] == BatchCost(85, 0)
    steep = fit_costs([StageBatch("draft", 0, time, rows) for rows, time in ((1, 1), (9, 99))])
    assert steep["draft"].fixed_ns == 0
    assert steep["draft"].row_ns > 0
