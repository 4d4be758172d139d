"""``bench.report.valley``: a valley is lower than both its sides, and not merely low."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from made_results import AGAIN, FolderInMemory, Truth, bare_cell
from scipy import stats

from bench.report.analysis import Analysis, Valley, analyse

GRID = (1, 2, 4, 6, 8, 12, 16, 32, 64)


def run_of(
    ratio: Callable[[int], float],
    concurrencies: tuple[int, ...] = GRID,
    *,
    seed: int = 0,
    twin: Callable[[int], float] | None = None,
    noise: float = 0.01,
    blocks: int = 8,
    missing: tuple[str, str, int] | None = None,
) -> Analysis:
    """A candidate ``b`` that is ``ratio`` times as fast as ``a`` with so many clients; ``twin``:
    how much faster the second server of ``a`` is than the first; ``missing``: a candidate, a load
    and a block that are not there."""
    truth = Truth(
        candidates=("a", "b"), twin=twin is not None, concurrencies=concurrencies, blocks=blocks
    )
    run, draw = truth.run(), np.random.default_rng(seed)
    factors = {"a": lambda clients: 1.0, "b": ratio, "a" + AGAIN: twin}
    cells = []
    for block in range(blocks + 1):
        for load in run.loads:
            level = 100_000 * math.exp(draw.normal(0, 0.3))
            for candidate in run.candidates:
                factor = factors[candidate.name]
                assert factor is not None
                assert load.concurrency is not None
                rate = level * factor(load.concurrency) * math.exp(draw.normal(0, noise))
                place = (candidate.name, load.name, block)
                if place != missing:
                    cells.append(bare_cell(run, "-".join(map(str, place)), *place, round(rate)))
    return analyse(FolderInMemory(run, cells, truth.end(run)))


def valley_of(analysis: Analysis, candidate: str = "b", reference: str = "a") -> Valley:
    (found,) = (
        valley
        for valley in analysis.valleys
        if (valley.candidate, valley.reference) == (candidate, reference)
    )
    return found


def dip(clients: int) -> float:
    return 0.9 if 6 <= clients <= 16 else 1.05


def test_a_ratio_that_dips_in_the_middle_is_a_valley() -> None:
    analysis = run_of(dip)
    found = valley_of(analysis)
    assert found.verdict == "valley"
    assert [point.concurrency for point in found.points] == list(GRID)
    for contrast in found.contrasts:
        assert contrast.ratio.estimate == pytest.approx(0.9 / 1.05, rel=0.02)
        assert contrast.ratio.high < 1
        assert contrast.ratio.alpha == pytest.approx(0.05 / 2)
    for point in found.points:
        assert point.ratio == analysis.comparison("shipped", point.load, "b", "a").ratio
    # Seen from the other side it is a hill.
    assert valley_of(analysis, "a", "b").verdict == "no valley"


@pytest.mark.parametrize(
    ("ratio", "lowest_sides"),
    [
        (lambda clients: 0.8, 2),  # behind everywhere
        (lambda clients: 1.0, 2),
        (lambda clients: 1.2 if clients < 6 else 0.9, 1),  # falls, and does not rise again
        (lambda clients: 0.7 if clients < 32 else 1.2, 1),  # rises
        (lambda clients: 1.2 if 6 <= clients <= 16 else 0.9, 2),  # a hill
    ],
)
def test_what_is_low_but_not_lower_than_both_sides_is_none(
    ratio: Callable[[int], float], lowest_sides: int
) -> None:
    found = valley_of(run_of(ratio))
    assert found.verdict == "no valley"
    sides = ["few clients", "many clients"]
    named = [side for side in sides if f"lower than with {side}" in found.text]
    named += [side for side in sides if f"nor with {side}" in found.text]
    assert len(named) == lowest_sides
    assert ("behind at every number" in found.text) == all(ratio(clients) < 1 for clients in GRID)


def test_a_dip_that_equal_servers_have_too_is_none() -> None:
    assert valley_of(run_of(dip, twin=lambda clients: 1.0)).verdict == "valley"
    found = valley_of(run_of(dip, twin=lambda clients: 0.85 if 6 <= clients <= 16 else 1.05))
    assert found.verdict == "no valley"


@pytest.mark.parametrize(
    ("concurrencies", "missing"),
    [((1, 8), "32 or more"), ((8, 32), "1 to 4"), ((1, 32), "6 to 16"), ((5, 20), "6 to 16")],
)
def test_without_loads_in_every_zone_there_is_no_telling(
    concurrencies: tuple[int, ...], missing: str
) -> None:
    found = valley_of(run_of(dip, concurrencies))
    assert found.verdict == "not testable with these loads"
    assert missing in found.text
    assert valley_of(run_of(dip, (1, 8, 32))).verdict == "valley"


def test_too_few_blocks_show_nothing() -> None:
    assert valley_of(run_of(dip, (1, 8, 32), blocks=7)).verdict == "too few blocks"
    assert valley_of(run_of(dip, (1, 8, 32), blocks=1)).verdict == "too few blocks"


def test_a_block_counts_if_it_has_all_loads_of_both_zones() -> None:
    found = valley_of(run_of(dip, (1, 8, 12, 32, 64), blocks=9, missing=("b", "C=12", 4)))
    assert [contrast.ratio.blocks for contrast in found.contrasts] == [8, 8]
    found = valley_of(run_of(dip, (1, 8, 12, 32, 64), blocks=9, missing=("a", "C=64", 4)))
    assert [contrast.ratio.blocks for contrast in found.contrasts] == [9, 8]


def test_flat_ratios_seldom_have_a_valley_or_a_contrast_that_is_wrong() -> None:
    runs = 150
    held = valleys = 0
    for seed in range(runs):
        found = valley_of(run_of(lambda clients: 0.9, (2, 8, 12, 32), seed=seed, noise=0.03))
        valleys += found.verdict == "valley"
        held += all(contrast.ratio.low <= 1 <= contrast.ratio.high for contrast in found.contrasts)
    assert held / runs >= stats.binom.ppf(1e-4, runs, 0.95) / runs
    assert valleys / runs <= 1 - stats.binom.ppf(1e-4, runs, 0.95) / runs
