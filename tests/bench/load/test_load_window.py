"""``bench.load.window``: every token of the window counts, and no request is lost."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.records import REFUSALS
from bench.load.window import LATE_FLOOR_MS, Window, count, lateness, present, tokens_within
from bench.results.records import Counts, Load, RequestRecord

MS = 1_000_000
LENGTH = 100


def record(
    events: list[tuple[int, int]], ended: int, arrival: int = -1000, **fields: Any
) -> RequestRecord:
    return RequestRecord(
        client=0,
        prompt=0,
        prompt_tokens=1,
        max_tokens=9,
        seed=0,
        arrival_ns=arrival,
        sent_ns=fields.pop("sent", arrival),
        ended_ns=ended,
        events=events,
        ids=[1] * sum(n for _, n in events),
        drafted=[0] * sum(n for _, n in events),
        **fields,
    )


def test_a_window_counts_what_arrives_in_it_and_nothing_else() -> None:
    records = [
        record([(-50, 1), (0, 2), (50, 4)], 50, finish="length"),  # began in the ramp
        record([(60, 8), (99, 16), (100, 32)], 110, finish="abort", cut_off=True),
        record([(-80, 64)], -10, finish="length"),  # over before
        record([], 120, finish="abort", cut_off=True),  # waited all the time
        record([], 10, error="queue_full"),
        record([(5, 128)], 20, error="lane_failed"),
        record([], 30, finish="abort"),  # the server shut down
        record([(150, 1)], 160, arrival=100, finish="length"),  # after the end
    ]
    counts = count(present(records, LENGTH), REFUSALS)
    load = Load(name="x", kind="closed", concurrency=4)
    window = Window(load=load, start_ns=7, end_ns=107, records=records, counts=counts)
    assert (window.window_ns, window.seconds) == (LENGTH, 1e-7)
    assert window.tokens == 2 + 4 + 8 + 16 + 128
    assert window.present == [records[i] for i in (0, 1, 3, 4, 5, 6)]
    assert window.counts == Counts(offered=6, completed=1, refused=1, failed=2, cut_off=2)


moments = st.integers(-2 * LENGTH, 2 * LENGTH)


@given(st.lists(st.lists(st.tuples(moments, st.integers(1, 9)), max_size=6), max_size=6))
def test_requests_that_are_cut_off_count_until_the_end(
    arrivals: list[list[tuple[int, int]]],
) -> None:
    """Cut off or not, and however tokens are shared out over requests, the same tokens count."""
    counted = sum(n for events in arrivals for at, n in events if at in range(LENGTH))
    cut = [record(sorted(e), 10**6, finish="abort", cut_off=True) for e in arrivals]
    whole = [record(sorted(e), 10**6, finish="length") for e in arrivals]
    together = [record(sorted(itertools.chain(*arrivals)), 10**6, finish="length")]
    assert tokens_within(cut, LENGTH) == counted
    assert tokens_within(whole, LENGTH) == counted
    assert tokens_within(together, LENGTH) == counted


cases = st.builds(
    lambda arrival, lasted, finish, error, cut: record(
        [], arrival + lasted, arrival, finish=None if error else finish, error=error, cut_off=cut
    ),
    moments,
    st.integers(0, 3 * LENGTH),
    st.sampled_from(("length", "stop", "abort")),
    st.sampled_from((None, "queue_full", "draining", "internal")),
    st.booleans(),
)


@given(st.lists(cases, max_size=9))
def test_every_request_fares_in_one_way(records: list[RequestRecord]) -> None:
    counts = count(records, REFUSALS)
    assert counts.offered == len(records)
    assert counts.offered == counts.completed + counts.refused + counts.failed + counts.cut_off
    assert min(counts.completed, counts.refused, counts.failed, counts.cut_off) >= 0


def sent_late(late_ms: list[float], ttft_ms: float) -> tuple[float | None, str | None]:
    records = [
        record(
            [(at * MS + round(ttft_ms * MS), 1)], 10**9, at * MS, sent=at * MS + round(late * MS)
        )
        for at, late in enumerate(late_ms)
    ]
    return lateness(records, 10**9)


def test_clients_that_are_late_make_a_window_invalid() -> None:
    assert lateness([], LENGTH) == (None, None)
    assert sent_late([0.5] * 100, 20.0) == (0.5, None)  # over 1 %, but below the floor
    floor = LATE_FLOOR_MS + 0.1
    assert sent_late([floor] * 100, 100 * floor + 1)[1] is None
    late, why = sent_late([floor] * 100, 100 * floor - 1)
    assert late == pytest.approx(floor)
    assert why is not None
    assert why.startswith("the clients were late")
    assert "\n" not in why
    # One in a thousand may be as late as it likes; one in fifty may not.
    assert sent_late([0.0] * 999 + [50.0], 10.0)[1] is None
    assert sent_late(([0.0] * 49 + [50.0]) * 2, 10.0)[1] is not None
    # What arrived in the ramp is not asked.
    early = record([(5, 1)], 9, arrival=-50 * MS, sent=0)
    assert lateness([early], LENGTH) == (None, None)


def test_lateness_without_any_token_is_still_judged() -> None:
    late = record([], 9, arrival=0, sent=50 * MS, error="queue_full")
    assert "late" in (lateness([late], LENGTH)[1] or "")
