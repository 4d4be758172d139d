"""The acceptance rule against a loop that spells it out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdv_mp.speculation.acceptance import accept


def by_hand(drafts: list[int], own: list[int]) -> tuple[int, int]:
    for count, (proposed, sampled) in enumerate(zip(drafts, own, strict=False)):
        if proposed != sampled:
            return count, sampled
    return len(drafts), own[len(drafts)]


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[list[int], list[int]]]:
    token = st.integers(0, 2)
    batch = []
    for length in draw(st.lists(st.integers(0, 8), max_size=12)):
        own = draw(st.lists(token, min_size=length + 1, max_size=length + 1))
        drafts = draw(st.one_of(st.just(own[:length]), st.lists(token, min_size=length)))
        batch.append((drafts[:length], own))
    return batch


@settings(max_examples=300, deadline=None)
@given(batches(), st.integers(0, 3), st.sampled_from([-1, 0, 1]), st.sampled_from(["i4", "i8"]))
def test_agrees_with_the_rule_one_by_one(
    batch: list[tuple[list[int], list[int]]], spare: int, padding: int, dtype: str
) -> None:
    lens = np.array([len(drafts) for drafts, _ in batch], np.int32)
    ids = np.full((len(batch), int(lens.max(initial=0)) + spare), padding, dtype)
    for row, (drafts, _) in zip(ids, batch, strict=True):
        row[: len(drafts)] = drafts
    own = np.array([token for _, tokens in batch for token in tokens], dtype)
    accepted, next_ids = accept(ids, lens, own)
    assert list(zip(accepted, next_ids, strict=True)) == [by_hand(*pair) for pair in batch]


def test_a_match_behind_a_mismatch_does_not_count() -> None:
    accepted, next_ids = accept(np.array([[5, 6, 7]]), np.array([3]), np.array([5, 9, 7, 8]))
    assert (accepted[0], next_ids[0]) == (1, 9)


@pytest.mark.parametrize(
    ("shape", "lens", "rows"),
    [((2, 3), [3], 4), ((1, 3), [4], 5), ((1, 3), [-1], 0), ((2, 3), [1, 2], 4)],
)
def test_shapes_that_do_not_belong_together(
    shape: tuple[int, int], lens: list[int], rows: int
) -> None:
    with pytest.raises(ValueError, match=r"draft_lens|rows of the verifier"):
        accept(np.zeros(shape, np.int64), np.array(lens), np.zeros(rows, np.int64))
