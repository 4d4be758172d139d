"""``bench.statistics``: its intervals hold as often as they say, its rules are kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bench.statistics import (
    ALPHA,
    LOOKS,
    MIN_BLOCKS,
    SequentialPlan,
    corrected,
    paired_ratio,
    quantile,
    samples_needed,
    smallest_effect,
)

RUNS = 2000
TRUE = 1.1


def simulated(
    draw: np.random.Generator, runs: int, blocks: int, ratio: float, noise: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Rates of a candidate and of the reference, [runs, blocks] each. Blocks differ a lot, by what
    both share; the noise of each is multiplicative."""
    level = np.exp(draw.normal(5, 0.5, (runs, blocks)))
    ours, theirs = np.exp(draw.normal(0, noise, (2, runs, blocks)))
    return ratio * level * ours, level * theirs


def at_least(share: float, runs: int) -> float:
    """What a true probability of ``share`` falls below once in 10,000 such simulations."""
    return float(stats.binom.ppf(1e-4, runs, share)) / runs


def test_a_paired_interval_is_students() -> None:
    found = paired_ratio([110, 242, 330], [100, 200, 300], ALPHA)
    logs = np.log([1.1, 1.21, 1.1])
    low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    assert math.log(found.low) == pytest.approx(low)
    assert math.log(found.high) == pytest.approx(high)
    assert math.log(found.estimate) == pytest.approx(logs.mean())
    assert found.half_width == pytest.approx((high - low) / 2)
    assert (found.blocks, found.alpha) == (3, ALPHA)


@pytest.mark.parametrize(
    ("values", "reference"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])]
)
def test_what_has_no_ratio_is_refused(values: list[float], reference: list[float]) -> None:
    with pytest.raises(ValueError, match=r"needs two pairs|have a ratio"):
        paired_ratio(values, reference, ALPHA)


@pytest.mark.parametrize("blocks", [MIN_BLOCKS, 24])
def test_intervals_hold_at_their_nominal_rate(blocks: int) -> None:
    ours, theirs = simulated(np.random.default_rng(blocks), RUNS, blocks, TRUE)
    found = [paired_ratio(a, b, ALPHA) for a, b in zip(ours, theirs, strict=True)]
    held = np.mean([ratio.low <= TRUE <= ratio.high for ratio in found])
    assert at_least(0.95, RUNS) <= held <= 1 - at_least(0.05, RUNS)


def sequential_run(
    ours: np.ndarray, theirs: np.ndarray, plan: SequentialPlan, spend: bool
) -> tuple[float, float]:
    """The interval of a run that stops at the first look that seems to show a difference."""
    for look in plan.looks:
        last = look == plan.blocks
        alpha = plan.alpha_at_end(look, looked=True) if last else plan.alpha_at(look)
        found = paired_ratio(ours[:look], theirs[:look], alpha if spend else plan.alpha)
        if last or found.low > 1 or found.high < 1:
            return found.low, found.high
    raise AssertionError("the last look ends a run")


def test_a_run_that_stops_when_it_likes_what_it_sees_keeps_its_coverage() -> None:
    plan = SequentialPlan(32)
    assert plan.looks == (8, 12, 16, 24, 32)
    held = {}
    for spend in (True, False):
        ours, theirs = simulated(np.random.default_rng(3), RUNS, plan.blocks, 1.0)
        pairs = zip(ours, theirs, strict=True)
        intervals = np.array([sequential_run(a, b, plan, spend) for a, b in pairs])
        held[spend] = np.mean((intervals[:, 0] <= 1) & (intervals[:, 1] >= 1))
    assert held[True] >= at_least(0.95, RUNS)
    assert held[False] < 0.92, "the simulation must notice looks that are not paid for"


def narrow(ours: np.ndarray, theirs: np.ndarray, plan: SequentialPlan) -> tuple[float, float]:
    """The interval of a run that stops once it is narrow enough."""
    for look in plan.looks[:-1]:
        found = paired_ratio(ours[:look], theirs[:look], plan.alpha_at(look))
        if found.half_width <= 0.06:
            return found.low, found.high
    found = paired_ratio(ours, theirs, plan.alpha_at_end(plan.blocks, looked=True))
    return found.low, found.high


def test_a_run_that_stops_when_its_interval_is_narrow_keeps_its_coverage() -> None:
    plan = SequentialPlan(24)
    ours, theirs = simulated(np.random.default_rng(4), RUNS, plan.blocks, TRUE)
    pairs = zip(ours, theirs, strict=True)
    intervals = np.array([narrow(a, b, plan) for a, b in pairs])
    assert np.mean((intervals[:, 0] <= TRUE) & (intervals[:, 1] >= TRUE)) >= at_least(0.95, RUNS)


@pytest.mark.parametrize("blocks", [1, 8, 9, 32, 100])
def test_looks_spend_all_of_alpha_and_no_more(blocks: int) -> None:
    plan = SequentialPlan(blocks)
    assert plan.looks[-1] == blocks
    assert set(plan.looks[:-1]) <= set(LOOKS)
    parts = [plan.alpha_at(look) for look in plan.looks[:-1]]
    assert min(parts, default=1) > 0
    assert sum(parts) + plan.alpha_at_end(blocks, looked=True) == pytest.approx(ALPHA)
    assert plan.alpha_at_end(blocks, looked=False) == ALPHA
    for end in range(1, blocks):  # the time may be over at any block
        spent = sum(plan.alpha_at(look) for look in plan.looks if look < end)
        assert spent + plan.alpha_at_end(end, looked=True) == pytest.approx(ALPHA)


def test_the_smallest_effect_is_found_as_often_as_it_says() -> None:
    noise, blocks, alpha = 0.05, 10, corrected(ALPHA, 12)
    effect = smallest_effect(noise * math.sqrt(2), blocks, alpha)
    ours, theirs = simulated(np.random.default_rng(5), RUNS, blocks, effect, noise)
    found = [paired_ratio(a, b, alpha).low > 1 for a, b in zip(ours, theirs, strict=True)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)
    assert smallest_effect(noise, 4 * blocks, alpha) < smallest_effect(noise, blocks, alpha)
    assert smallest_effect(0.0, blocks, alpha) == 1


def test_quantiles_need_enough_samples() -> None:
    assert [samples_needed(q) for q in (0.5, 0.95, 0.99)] == [6, 72, 368]
    assert quantile([1.0] * 367, 0.99) is None
    assert quantile([], 0.5) is None
    found = quantile(list(range(1, 369)), 0.99)
    assert found is not None
    assert found.low < found.value < found.high == 368


@pytest.mark.parametrize(("q", "samples"), [(0.5, 6), (0.95, 72), (0.99, 368), (0.95, 300)])
def test_the_interval_of_a_quantile_holds_at_its_nominal_rate(q: float, samples: int) -> None:
    draws = np.random.default_rng(samples).exponential(size=(RUNS, samples))
    true, held = -math.log1p(-q), 0
    for draw in draws:
        found = quantile(draw, q)
        assert found is not None
        held += found.low <= true <= found.high
    assert held / RUNS >= at_least(0.95, RUNS)
