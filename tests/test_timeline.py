"""Timelines: the parts add up, whatever the order of states and processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pdv_mp.timeline import STATES, Timeline, orchestration_share, state_index

steps = st.lists(
    st.tuples(st.integers(0, len(STATES) - 1), st.integers(0, 10**9), st.booleans()), max_size=50
)


@given(steps=steps, tail=st.integers(0, 10**9))
def test_states_add_up_to_the_end_to_end_time(
    steps: list[tuple[int, int, bool]], tail: int
) -> None:
    now = 1000
    timeline = Timeline(0, now)
    for state, elapsed, cross in steps:
        now += elapsed
        if cross:
            timeline = Timeline.unpack(timeline.snapshot(state, now))
        else:
            timeline.enter(state, now)
    report = timeline.report(now + tail)
    assert report["e2e_ns"] == now + tail - 1000
    assert sum(entry["ns"] for entry in report["states"].values()) == report["e2e_ns"]


def test_a_snapshot_leaves_the_timeline_as_it_was() -> None:
    timeline = Timeline(3, 0)
    timeline.enter(5, 10)
    before = timeline.pack()
    snapshot = Timeline.unpack(timeline.snapshot(7, 25))
    assert timeline.pack() == before
    assert snapshot.report(30)["states"] == {
        STATES[3]: {"n": 1, "ns": 10},
        STATES[5]: {"n": 1, "ns": 15},
        STATES[7]: {"n": 1, "ns": 5},
    }


def test_entering_the_same_state_again_is_no_change() -> None:
    timeline = Timeline(0, 0)
    timeline.enter(0, 5)
    assert timeline.report(9)["states"][STATES[0]] == {"n": 1, "ns": 9}


def test_overlapped_work_stays_outside_the_sum() -> None:
    timeline = Timeline(0, 0)
    timeline.add_overlapped(state_index("front.text"), 40, count=2)
    timeline.add_overlapped(state_index("front.text"), 2)
    report = Timeline.unpack(timeline.pack()).report(10)
    assert report["e2e_ns"] == 10
    assert report["overlapped"] == {"front.text": {"n": 3, "ns": 42}}


def test_orchestration_is_never_queue_busy_or_compute() -> None:
    names = ["front.queue", "verify.compute", "draft.busy", "verify.batch", "front>verify.wire"]
    states = {name: {"n": 1, "ns": 10} for name in names}
    assert orchestration_share({"e2e_ns": 50, "states": states}) == 0.4
