"""The layout of ragged batches: complete, without NaN traps, with bounded waste and few calls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdv_mp.memory.attention_plan import TILE_ROWS, BatchLayout, layout_batch
from pdv_mp.model.batch import ForwardBatch

Sequences = list[tuple[int, int, int]]


def build(sequences: Sequences) -> ForwardBatch:
    slots, starts, lens = (np.array(column) for column in zip(*sequences, strict=True))
    return ForwardBatch.build(
        np.zeros(lens.sum(), dtype=np.int64), lens, starts, slots, None, "cpu"
    )


CALL_COST = 1024


def shapes(layout: BatchLayout) -> list[tuple[int, int, int, int]]:
    """First slot, lanes, rows and context of each group."""
    return [(int(g.slots[0]), *g.query_positions.shape, g.context) for g in layout.groups]


ragged = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.integers(0, 700),
        st.one_of(st.integers(1, 8), st.integers(1, 400)),
    ),
    min_size=1,
    max_size=24,
    unique_by=lambda sequence: sequence[0],
)


@settings(max_examples=150, deadline=None)
@given(sequences=ragged, consecutive=st.booleans())
def test_every_row_sees_its_slot_and_position(sequences: Sequences, consecutive: bool) -> None:
    batch = build(sequences)
    layout = layout_batch(batch, consecutive, CALL_COST)
    slots = np.concatenate([np.repeat(g.slots, g.query_positions.shape[1]) for g in layout.groups])
    positions = np.concatenate([g.query_positions.ravel() for g in layout.groups])
    contexts = np.concatenate([np.full(g.query_positions.size, g.context) for g in layout.groups])
    rows = np.arange(batch.num_rows)
    restore = rows if layout.restore is None else layout.restore
    pad = rows if layout.pad is None else layout.pad
    assert len(pad) == len(positions)
    assert np.array_equal(pad[restore], rows)
    assert np.array_equal(slots[restore], batch.row_slots)
    assert np.array_equal(positions[restore], batch.row_positions)
    assert (positions < contexts).all()
    padding = np.setdiff1d(np.arange(len(pad)), restore)
    assert (positions[padding] == 0).all()
    for group in layout.groups:
        assert len(set(group.slots.tolist())) == len(group.slots)
        if consecutive:
            assert (np.diff(group.slots) == 1).all()
        if group.uniform:
            assert group.query_positions.shape[1] == 1


@settings(max_examples=100, deadline=None)
@given(sequences=ragged, consecutive=st.booleans())
def test_padding_costs_less_than_the_calls_that_it_saves(
    sequences: Sequences, consecutive: bool
) -> None:
    groups = layout_batch(build(sequences), consecutive, CALL_COST).groups
    padded = sum(group.query_positions.size * group.context for group in groups)
    useful = tiles = 0
    for _, start, count in sequences:
        for first in range(0, count, TILE_ROWS):
            rows = min(TILE_ROWS, count - first)
            useful += rows * (start + first + rows)
            tiles += 1
    saved = CALL_COST * (tiles - len(groups))
    assert padded <= max(useful + saved, 1.25 * useful + CALL_COST)


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        # Uniform decoding and verification: one call.
        ([(3 + i, 100 + i, 5) for i in range(32)], [(3, 32, 5, 136)]),
        ([(9, 77, 1)], [(9, 1, 1, 78)]),
        ([(i, 0, 20) for i in range(8)], [(0, 8, 20, 20)]),
        # A small gap is bridged, a large one is not.
        ([(0, 90, 5), (1, 90, 5), (3, 90, 5)], [(0, 4, 5, 95)]),
        ([(0, 90, 5), (1, 90, 5), (9, 90, 5)], [(0, 2, 5, 95), (9, 1, 5, 95)]),
        # A long chunk is cut, and does not pad the short ones.
        (
            [*((4 + i, 50, 5) for i in range(4)), (2, 0, 300)],
            [(2, 1, 128, 128), (2, 1, 128, 256), (2, 1, 44, 300), (4, 4, 5, 55)],
        ),
        # One long context does not make thirty short ones read as many keys.
        (
            [(i, 2000 if i == 7 else 20, 5) for i in range(31)],
            [(0, 7, 5, 25), (7, 1, 5, 2005), (8, 23, 5, 25)],
        ),
    ],
)
def test_groups_of_typical_batches(
    sequences: Sequences, expected: list[tuple[int, int, int, int]]
) -> None:
    assert shapes(layout_batch(build(sequences), True, CALL_COST)) == expected


def test_scattered_slots_share_a_call_where_keys_are_gathered() -> None:
    sequences = [(slot, 20 if slot % 3 else 900, 5) for slot in (40, 3, 17, 30, 8, 33)]
    layout = layout_batch(build(sequences), False, CALL_COST)
    assert [len(group.slots) for group in layout.groups] == [3, 3]
    assert [group.context for group in layout.groups] == [25, 905]


@pytest.mark.parametrize("consecutive", [True, False])
def test_uniform_rows_are_not_moved(consecutive: bool) -> None:
    for sequences in ([(3, 9, 5), (4, 2, 5)], [(1, 7, 1)], [(2, 0, 256)]):
        layout = layout_batch(build(sequences), consecutive, CALL_COST)
        assert layout.pad is None
        assert layout.restore is None
    scattered = layout_batch(build([(8, 9, 5), (4, 2, 5)]), consecutive, CALL_COST)
    assert (scattered.pad is None) is not consecutive
