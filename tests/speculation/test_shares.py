"""Drafts divided among sequences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdv_mp.speculation.draft_length.shares import PORTION, equal_shares, shares_of_the_last


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Limits, of which one at least is not 0, remaining tokens, and survival."""
    sequences = draw(st.integers(2, 12))
    several = st.lists(st.integers(0, 6), min_size=sequences, max_size=sequences)
    limits = np.array(draw(several.filter(any)), np.int64)
    remaining = limits + 1 + np.array(draw(several), np.int64) * 20
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    rates = rng.uniform(0.005, 0.995, sequences)
    if draw(st.booleans()):
        rates[:] = rates[0]
    return limits, remaining, np.cumprod(np.repeat(rates[:, None], limits.max(), axis=1), axis=1)


@given(batches())
def test_shares_keep_to_limits_and_to_their_portion(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    limits, _, _ = batch
    shares = shares_of_the_last(*batch)
    assert shares.worth.mean() == pytest.approx(1)
    assert not shares.lengths[0].any()
    assert (shares.lengths[-1] == limits).all()
    assert (shares.lengths >= 0).all()
    assert (np.diff(shares.rows) >= 0).all()
    assert shares.drafting == (limits > 0).sum()
    for longest, portion, lengths in zip(
        shares.longest, shares.portions, shares.lengths, strict=True
    ):
        allowed = np.minimum(limits, longest)
        assert (lengths <= allowed).all()
        assert lengths.sum() == int(portion * allowed.sum())
    assert set(zip(shares.longest.tolist(), shares.portions.tolist(), strict=True)) == {
        (longest, portion)
        for longest in range(limits.max() + 1)
        for portion in (1.0, PORTION)
        if portion == 1 or int(portion * np.minimum(limits, longest).sum())
    }


@given(batches())
def test_a_portion_goes_where_it_is_worth_most(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    limits, _, survival = (column[:4] for column in batch)
    if not limits.any():
        limits[0] = 1
    survival = survival[:, : limits.max()]
    shares = shares_of_the_last(limits, limits + 1, survival)
    tokens = shares.tokens(survival)
    kept = np.concatenate([np.zeros((len(limits), 1)), np.cumsum(survival, axis=1)], axis=1)
    for index, (longest, lengths) in enumerate(zip(shares.longest, shares.lengths, strict=True)):
        allowed = [range(min(limit, longest) + 1) for limit in limits.tolist()]
        best = max(
            sum(shares.worth[place] * (1 + kept[place, k]) for place, k in enumerate(each))
            for each in itertools.product(*allowed)
            if sum(each) == lengths.sum()
        )
        assert tokens[index] == pytest.approx(best)


def test_of_alike_sequences_the_one_with_most_to_come_is_first() -> None:
    survival = np.full((4, 1), 0.7)
    shares = shares_of_the_last(np.full(4, 1), np.array([20, 90, 40, 60]), survival)
    assert shares.lengths.tolist() == [[0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]]


def test_of_sequences_with_as_much_to_come_the_slowest_is_first() -> None:
    survival = np.array([[0.9], [0.5], [0.9], [0.9]])
    shares = shares_of_the_last(np.full(4, 1), np.full(4, 100), survival)
    assert shares.lengths[1].tolist()[1] == 1


def test_one_that_is_far_behind_does_not_outweigh_all_others() -> None:
    shares = shares_of_the_last(np.full(3, 4), np.array([10, 10, 1000]), np.full((3, 4), 0.5))
    assert shares.worth.max() / shares.worth.min() <= 16


def test_equal_shares_end_at_limits() -> None:
    shares = equal_shares(np.array([0, 1, 3]))
    assert shares.lengths.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2], [0, 1, 3]]
    assert shares.rows.tolist() == [3, 5, 6, 7]
    assert shares.steps.tolist() == [0, 1, 2, 3]
    survival = np.array([[0.5, 0.25, 0.125]] * 3)
    assert shares.tokens(survival).tolist() == [3, 4, 4.25, 4.375]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [((0, 1.0), (0, 1.0)), ((2, 0.5), (2, 0.5)), ((2, 1.0), (2, 1.0)), ((7, 1.0), (3, 1.0))],
)
def test_a_present_way_is_found_again(wanted: tuple[int, float], found: tuple[int, float]) -> None:
    shares = shares_of_the_last(np.full(4, 3), np.full(4, 9), np.full((4, 3), 0.5))
    index = shares.at(*wanted)
    assert (shares.longest[index], shares.portions[index]) == found


def test_a_portion_that_is_not_there_becomes_the_whole() -> None:
    shares = equal_shares(np.full(4, 3))
    assert shares.at(2, PORTION) == 2
