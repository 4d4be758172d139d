"""``bench.report.analysis`` on simulated runs of known truth: it errs as seldom as it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from made_results import FolderInMemory, Truth, bare_cell
from scipy import stats

from bench.report.analysis import Analysis, analyse
from bench.results.records import CellRecord, RequestRecord
from bench.statistics import (
    MIN_BLOCKS,
    Estimate,
    SequentialPlan,
    geometric_mean,
    pooled_quantile,
    ratio_of_sums,
)
from bench.sweep.plan import Place
from bench.sweep.sweep import Sweep

LEVEL = 100_000
"""Tokens of a cell, so many that rounding them is no noise."""

Rate = Callable[[str, str], float]


def alike(candidate: str, load: str) -> float:
    return 1.0


def at_least(share: float, runs: int) -> float:
    """What a true probability of ``share`` falls below once in 10,000 such simulations."""
    return float(stats.binom.ppf(1e-4, runs, share)) / runs


class Quiet:
    """Progress of a sweep that nobody watches."""

    def known(self, cells: int) -> None:
        pass

    def cell(self, cell: CellRecord, left: int, seconds: float) -> None:
        pass

    def block(self, pair: str, block: int) -> None:
        pass


def sweep(truth: Truth, rate: Rate, seed: int) -> Analysis:
    """One sweep of made-up cells from its first block to its report, stopping rule included.

    What the blocks of a load have in common differs a lot, the rest by ``truth.noise``.
    """
    run = truth.run()
    folder = FolderInMemory(run, [])
    draw = np.random.default_rng(seed)
    levels = draw.normal(0, 0.3, (run.blocks + 1, len(run.loads)))

    def measure(place: Place) -> tuple[CellRecord, list[RequestRecord]]:
        candidate, load = run.candidates[place.candidate], run.loads[place.load]
        true = rate(candidate.twin_of or candidate.name, load.name)
        noise = levels[place.block, place.load] + draw.normal(0, truth.noise)
        tokens = round(LEVEL * true * math.exp(noise))
        return bare_cell(run, place.id, candidate.name, load.name, place.block, tokens)

    @contextmanager
    def open_pair(
        number: int,
    ) -> Iterator[Callable[[Place], tuple[CellRecord, list[RequestRecord]]]]:
        yield measure

    Sweep(folder, run, open_pair, Quiet(), budget=1e9).run()
    return analyse(folder)


def decided(analysis: Analysis) -> bool:
    """Whether anything is ahead or behind."""
    return any(found.verdict in ("ahead", "behind") for found in analysis.comparisons)


def test_equal_candidates_have_no_winner() -> None:
    """Without a twin, whose difference would hide most errors; and with looks on the way."""
    runs = 200
    truth = Truth(candidates=("a", "b", "c"), twin=False, concurrencies=(1, 8))
    wrong = [decided(sweep(truth, alike, seed)) for seed in range(runs)]
    assert 1 - np.mean(wrong) >= at_least(0.95, runs)
    assert any(wrong), "the simulation must notice errors at all"


def test_equal_candidates_have_no_winner_when_a_sweep_stops_early() -> None:
    runs = 200
    truth = Truth(
        candidates=("a", "b"), twin=False, concurrencies=(4,), blocks=16, noise=0.02, precision=0.03
    )
    found = [sweep(truth, alike, seed) for seed in range(runs)]
    assert {a.blocks for a in found} == {8, 12, 16}
    plan = SequentialPlan(16)
    spent = {a.blocks: a.alpha for a in found}
    assert (spent[8], spent[12]) == (plan.alpha_at(8), plan.alpha_at(12))
    assert spent[16] == plan.alpha_at_end(16, looked=True)
    assert 1 - np.mean([decided(analysis) for analysis in found]) >= at_least(0.95, runs)


@pytest.mark.parametrize(("blocks", "precision"), [(8, None), (16, 0.05)])
def test_all_intervals_of_a_run_hold_at_once(blocks: int, precision: float | None) -> None:
    runs = 100
    of = {"a": 1.0, "b": 1.1, "c": 0.9}
    truth = Truth(candidates=tuple(of), concurrencies=(2, 4), blocks=blocks, precision=precision)
    held = 0
    for seed in range(runs):
        analysis = sweep(truth, lambda candidate, load: of[candidate], seed)
        assert len(analysis.comparisons) == 3 * 2 * 2
        assert analysis.comparisons_alpha == pytest.approx(analysis.alpha / (4 * 2))
        found = [(c.ratio, of[c.candidate] / of[c.reference]) for c in analysis.comparisons]
        found += [(noise.ratio, 1.0) for noise in analysis.noise]
        held += all(ratio is not None and ratio.low <= true <= ratio.high for ratio, true in found)
    assert held / runs >= at_least(0.95, runs)


def test_a_single_interval_holds_at_its_nominal_rate_and_not_more_often() -> None:
    runs = 300
    truth = Truth(candidates=("a", "b"), twin=False, concurrencies=(2,))
    held = 0
    for seed in range(runs):
        analysis = sweep(truth, lambda candidate, load: 1.1 if candidate == "a" else 1.0, seed)
        ratio = analysis.comparison("shipped", "C=2", "a", "b").ratio
        assert ratio is not None
        held += ratio.low <= 1.1 <= ratio.high
    assert at_least(0.95, runs) <= held / runs <= 1 - at_least(0.05, runs)


def test_a_true_difference_beyond_the_smallest_effect_is_found() -> None:
    truth = Truth(candidates=("a", "b"), concurrencies=(2,))
    runs, found = 100, 0
    for seed in range(runs):
        analysis = sweep(truth, lambda candidate, load: 1.2 if candidate == "a" else 1.0, seed)
        ahead = analysis.comparison("shipped", "C=2", "a", "b")
        behind = analysis.comparison("shipped", "C=2", "b", "a")
        assert ahead.smallest_effect is not None
        assert ahead.smallest_effect < 1.2
        assert (ahead.verdict == "ahead") == (behind.verdict == "behind")
        found += ahead.verdict == "ahead"
    assert found / runs > 0.95


def clustered(draw: np.random.Generator, blocks: int, size: int, spread: float) -> list[np.ndarray]:
    """Exponential latencies whose level differs from block to block."""
    levels = np.exp(draw.normal(0, spread, blocks))
    return [level * draw.exponential(size=size) for level in levels]


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_intervals_over_blocks_hold_though_requests_of_a_block_are_alike(spread: float) -> None:
    runs, blocks, size = 400, 12, 60
    draw = np.random.default_rng(8)
    many = np.concatenate(clustered(draw, 100_000, 20, spread))
    true_mean, true_median = many.mean(), np.median(many)
    held = {"mean": 0, "median": 0}
    for _ in range(runs):
        samples = clustered(draw, blocks, size, spread)
        mean = ratio_of_sums([s.sum() for s in samples], [len(s) for s in samples], 0.05)
        median = pooled_quantile(samples, 0.5)
        assert mean is not None
        assert median is not None
        assert mean.low is not None
        assert mean.high is not None
        held["mean"] += mean.low <= true_mean <= mean.high
        held["median"] += median.low <= true_median <= median.high
    # t intervals of skewed means hold a little less often than they say.
    assert held["mean"] / runs >= at_least(0.92, runs)
    assert held["median"] / runs >= at_least(0.94, runs)


def test_means_over_blocks() -> None:
    values = (1.0, 2.0, 4.0)
    found = geometric_mean(values, 0.05)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    low, high = stats.t.interval(0.95, 2, np.log(2), stats.sem(np.log(values)))
    assert (found.value, found.low, found.high) == pytest.approx((2, math.exp(low), math.exp(high)))
    assert geometric_mean([], 0.05) is None
    one = geometric_mean([3.0], 0.05)
    assert one is not None
    assert (one.value, one.low, one.high, one.blocks) == (pytest.approx(3), None, None, 1)
    # With equal denominators a ratio of sums is a mean, and its interval Student's, of the log.
    mean = ratio_of_sums(values, [1, 1, 1], 0.05)
    assert mean is not None
    middle = np.mean(values)
    low, high = np.log(middle) + np.array(stats.t.interval(0.95, 2, 0, stats.sem(values))) / middle
    assert (mean.value, mean.low, mean.high) == pytest.approx((middle, np.exp(low), np.exp(high)))
    assert ratio_of_sums([0.0, 0.0], [1.0, 2.0], 0.05) == Estimate(0.0, 0.0, 0.0, 2)
    assert ratio_of_sums([3.0, 0.0], [2.0, 0.0], 0.05) == ratio_of_sums([3.0], [2.0], 0.05)
    assert ratio_of_sums([0.0], [0.0], 0.05) is None
    assert pooled_quantile([np.ones(5)], 0.5) is None
    assert pooled_quantile([np.ones(5), np.ones(0), np.ones(1)], 0.5) is not None
    assert MIN_BLOCKS == 8
