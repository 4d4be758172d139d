"""Histograms with fixed bounds, and quantiles of them."""

from __future__ import annotations

import pytest

from pdv_mp.metrics.histogram import (
    LATENCY_BOUNDS_NS,
    TOKEN_BOUNDS,
    Histogram,
    difference,
    quantile,
)


def test_bounds_rise_and_cover_what_happens() -> None:
    for bounds in (LATENCY_BOUNDS_NS, TOKEN_BOUNDS):
        assert list(bounds) == sorted(set(bounds))
    assert (LATENCY_BOUNDS_NS[0], LATENCY_BOUNDS_NS[-1]) == (100_000, 10**12)
    assert (TOKEN_BOUNDS[0], TOKEN_BOUNDS[-1]) == (1, 1_000_000)


def test_a_value_is_in_the_bucket_up_to_its_bound() -> None:
    histogram = Histogram((10, 20))
    for value in (0, 10, 11, 20, 21, 10**18):
        histogram.observe(value)
    assert histogram.as_dict() == {"counts": [2, 2, 2], "sum": 10**18 + 62.0}


def test_a_difference_has_what_came_between() -> None:
    histogram = Histogram((10, 20))
    histogram.observe(5)
    before = histogram.as_dict()
    histogram.observe(15)
    assert difference(histogram.as_dict(), before) == {"counts": [0, 1, 0], "sum": 15.0}
    assert difference(before, None) == before


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0], 0.5, None),
        ([4, 0, 0], 0.5, 5.0),
        ([0, 4, 0], 0.5, 15.0),
        ([2, 2, 0], 0.5, 10.0),
        ([2, 2, 0], 1.0, 20.0),
        ([0, 0, 3], 0.5, 20.0),
        ([1, 1, 98], 0.99, 20.0),
    ],
)
def test_quantiles_are_those_of_prometheus(
    counts: list[int], share: float, expected: float | None
) -> None:
    assert quantile((10, 20), counts, share) == expected
