"""Ragged ranges and token columns."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pdv_mp.scheduling.columns import ragged_range
from pdv_mp.scheduling.sequences import SequenceTable

spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=12)


@given(spans=spans)
def test_ragged_range_is_the_concatenation(spans: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in spans], np.int64)
    lengths = np.array([length for _, length in spans], np.int64)
    expected = [value for start, length in spans for value in range(start, start + length)]
    assert ragged_range(starts, lengths).tolist() == expected


def test_ragged_tokens_take_each_slots_own_span() -> None:
    table = SequenceTable(num_slots=3, max_model_len=8)
    table.tokens[:] = np.arange(24).reshape(3, 8)
    taken = table.ragged_tokens(np.array([0, 2]), np.array([6, 1]), np.array([2, 3]))
    assert taken.tolist() == [6, 7, 17, 18, 19]
    assert taken.dtype == np.int32
