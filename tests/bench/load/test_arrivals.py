"""``bench.load.arrivals``: arrivals are the renewal process that they claim to be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from bench.load.arrivals import arrival_times
from bench.load.lengths import fixed
from bench.load.sources import scheduled
from bench.load.workloads import Workload
from bench.results.records import Load

RATE = 7.0


def gaps(times: Iterator[float], count: int) -> np.ndarray:
    return np.diff([0.0, *itertools.islice(times, count)])


def arrivals(burstiness: float | None, seed: int, block: int = 1) -> Iterator[float]:
    """Those that an open loop sends its requests at."""
    load = Load(name=f"rate {RATE}", kind="open", rate=RATE, burstiness=burstiness)
    return (at for at, _ in scheduled(Workload([[1]], fixed(1), seed), load, block))


@pytest.mark.parametrize("burstiness", [None, 1.0, 0.25, 4.0])
def test_gaps_have_their_distribution_at_the_nominal_rate(burstiness: float | None) -> None:
    shape = burstiness or 1.0
    exact = stats.gamma(shape, scale=1 / (RATE * shape))
    if shape == 1.0:
        exact = stats.expon(scale=1 / RATE)
    runs, alpha = 200, 0.05
    rejected = sum(
        stats.kstest(gaps(arrivals(burstiness, seed), 400), exact.cdf).pvalue < alpha
        for seed in range(runs)
    )
    # A test of level alpha rejects what is true in a share alpha of the runs.
    assert stats.binomtest(rejected, runs, alpha).pvalue > 0.001
    for other in (shape * 1.5, shape / 1.5):
        wrong = stats.gamma(other, scale=1 / (RATE * other))
        assert stats.kstest(gaps(arrivals(burstiness, 0), 4000), wrong.cdf).pvalue < 1e-6


def test_gaps_do_not_depend_on_each_other() -> None:
    found = gaps(arrivals(0.5, 3), 5000)
    assert abs(stats.spearmanr(found[:-1], found[1:]).statistic) < 0.05


def test_counts_in_windows_are_those_of_a_poisson_process() -> None:
    seconds, runs = 6.0, 300
    counts = [
        len(list(itertools.takewhile(lambda at: at < seconds, arrivals(1.0, seed))))
        for seed in range(runs)
    ]
    mean = RATE * seconds
    assert np.mean(counts) == pytest.approx(mean, rel=0.03)
    dispersion = float(np.var(counts, ddof=1)) / mean * (runs - 1)
    assert 0.001 < stats.chi2(runs - 1).cdf(dispersion) < 0.999
    bursty = [
        len(list(itertools.takewhile(lambda at: at < seconds, arrivals(0.25, seed))))
        for seed in range(runs)
    ]
    assert np.var(bursty) > 2 * np.var(counts)


def test_the_schedule_depends_on_seed_block_and_load_alone() -> None:
    def first(block: int, seed: int, name: str = "x") -> list[object]:
        load = Load(name=name, kind="open", rate=RATE)
        workload = Workload([[1], [2], [3]], fixed(4), seed)
        return list(itertools.islice(scheduled(workload, load, block), 600))

    assert first(1, 0) == first(1, 0)
    assert len({str(first(*of)) for of in ((1, 0), (2, 0), (1, 1), (1, 0, "y"))}) == 4


def test_times_ascend_without_end() -> None:
    found = list(itertools.islice(arrival_times(1e3, 0.1, np.random.default_rng(0)), 2000))
    assert found == sorted(found)
    assert found[-1] == pytest.approx(2.0, rel=0.3)
