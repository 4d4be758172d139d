"""The running estimate of how often drafts are kept."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pdv_mp.speculation.draft_length.acceptance_estimate import AcceptanceEstimate

SLOTS, LENGTH, KINDS = 4, 5, 2
ALL = np.arange(SLOTS)

Verdict = tuple[np.ndarray, np.ndarray, np.ndarray]
Event = Verdict | int | np.ndarray


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    slots = sorted(draw(st.sets(st.integers(0, SLOTS - 1), min_size=1)))
    lengths = [draw(st.integers(0, LENGTH)) for _ in slots]
    accepted = [draw(st.integers(0, length)) for length in lengths]
    return np.array(slots), np.array(lengths), np.array(accepted)


def kinds() -> st.SearchStrategy[np.ndarray]:
    each = st.integers(0, KINDS - 1)
    return st.lists(each, min_size=SLOTS, max_size=SLOTS).map(np.array)


def tell(estimate: AcceptanceEstimate, event: Event) -> None:
    if isinstance(event, tuple):
        estimate.judged(*event)
    elif isinstance(event, int):
        estimate.forget(event)
    else:
        estimate.drafts(ALL, event)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(verdicts(), st.integers(0, SLOTS - 1), kinds()), max_size=60))
def test_it_does_not_matter_when_somebody_asks(events: list[Event]) -> None:
    asked, left = (AcceptanceEstimate(SLOTS, LENGTH, KINDS) for _ in range(2))
    for event in events:
        tell(asked, event)
        tell(left, event)
        assert 0 < asked.mean < 1
    assert left.mean == asked.mean
    assert np.array_equal(left.survival(ALL, LENGTH), asked.survival(ALL, LENGTH))


def test_a_new_owner_of_a_slot_is_judged_as_its_fellows_are() -> None:
    estimate = AcceptanceEstimate(SLOTS, LENGTH)
    for _ in range(3):
        estimate.judged(np.array([0, 1]), np.array([5, 5]), np.array([0, 5]))
    unlucky, lucky, other, _ = estimate.survival(ALL, 1)[:, 0]
    assert unlucky < other < lucky
    estimate.judged(np.array([0]), np.array([5]), np.array([0]))
    estimate.forget(0)
    survival = estimate.survival(ALL, 1)[:, 0]
    assert survival[0] == survival[2] < survival[1]
