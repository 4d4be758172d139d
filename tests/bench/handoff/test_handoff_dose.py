"""Dose and response: what is said of the line holds as often as it says, whatever the blocks do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from click import BadParameter

from bench.handoff.cells import Cell, Timed
from bench.handoff.dose import (
    DEFAULT,
    dose_rows,
    dose_variants,
    fit_line,
    hop_us,
    line_rows,
    line_table,
    parse_doses,
    point_table,
)
from bench.handoff.variants import Variant
from bench.statistics import ALPHA
from pdv_mp.workers.handoffs import Handoff, report

BASE = Variant("pdv", "pdv")
DOSES = (0, 250, 500, 1000)
SLOPE, INTERCEPT, HOP = 0.3, 2000.0, 150.0


def response(draw: np.random.Generator, blocks: int, slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Times [blocks, doses] and hops [blocks] of a noisy machine: blocks differ in their level and
    in their slope, and each time has noise of its own."""
    level = draw.normal(INTERCEPT, 200, (blocks, 1))
    slopes = draw.normal(slope, 0.05, (blocks, 1))
    times = level + slopes * np.array(DOSES) + draw.normal(0, 40, (blocks, len(DOSES)))
    return times, draw.normal(HOP, 10, blocks)


@pytest.mark.parametrize("slope", [SLOPE, 0.0])
def test_the_intervals_hold_as_often_as_they_say(slope: float) -> None:
    draw, runs = np.random.default_rng(7), 2000
    truth = {"slope": slope, "intercept": INTERCEPT, "free": INTERCEPT - slope * HOP}
    held = dict.fromkeys(truth, 0)
    for _ in range(runs):
        times, hops = response(draw, 8, slope)
        line = fit_line(DOSES, times, hops, ALPHA)
        for name, value in truth.items():
            found = getattr(line, name)
            held[name] += found.low <= value <= found.high
    error = 3 * (ALPHA * (1 - ALPHA) / runs) ** 0.5
    for count in held.values():
        assert abs(count / runs - (1 - ALPHA)) < error


def test_points_on_a_line_give_that_line() -> None:
    times = [[1000 + 2 * dose for dose in DOSES], [3000 + 2 * dose for dose in DOSES]]
    line = fit_line(DOSES, times, [100, 100])
    assert (line.slope.low, line.slope.high) == pytest.approx((2, 2))
    assert line.intercept.value == pytest.approx(2000)
    assert line.free.value == pytest.approx(1800)
    alone = fit_line(DOSES, times[:1], [100])
    assert alone.free.value == pytest.approx(800)
    assert alone.free.low is None


def test_doses_are_parsed_strictly() -> None:
    assert parse_doses("draft>verify=500, 0,250,500") == {"draft>verify": [0, 250, 500]}
    assert list(parse_doses(DEFAULT)) == ["draft>verify", "verify>draft"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "draft>verify",
        "draft>verify=",
        "draft>verify=0",
        "draft>verify=0,250",
        "draft>verify=250,500,1000",
        "draft>verify=0,-1,5",
        "draft>verify=0,x,5",
        "draft>prefill=0,250,500",
        "draft>verify=0,1,2;draft>verify=0,1,2",
    ],
)
def test_other_doses_are_refused(text: str) -> None:
    with pytest.raises(BadParameter):
        parse_doses(text)


def test_edges_share_the_server_without_a_delay() -> None:
    found = dose_variants(BASE, parse_doses(DEFAULT))
    assert found["draft>verify", 0] is found["verify>draft", 0] is BASE
    delayed = found["verify>draft", 250]
    assert delayed.options == {"inject-delay": "verify>draft=250"}
    assert len({variant.name for variant in found.values()}) == 7


def handoffs(hop_ns: int, busy_ns: int, cycles: int) -> dict[str, Any]:
    handoff = Handoff()
    handoff.messages = cycles
    for _ in range(cycles):
        handoff.arrivals.add(10_000, hop_ns - 30_000 + busy_ns, 20_000, busy_ns)
    return report({"draft>verify": handoff.as_dict()})


def timed(dose_us: int, block: int) -> Timed:
    """100 tokens in 40 cycles, of which each waits for one message."""
    length = 100 * 2_000_000 + 40 * dose_us * 1000 + block * 1_000_000
    return Timed((0, length), 100, 100, handoffs(150_000, 7_000, 40), {})


def test_a_cycle_that_waits_for_each_message_has_slope_one() -> None:
    variants = dose_variants(BASE, {"draft>verify": list(DOSES)})
    cells = {
        (variant.name, 1): Cell([timed(dose, block) for block in range(8)])
        for (_, dose), variant in variants.items()
    }
    points = dose_rows(variants, cells)
    assert len(points) == 32
    assert hop_us(timed(0, 0), "draft>verify") == pytest.approx(150)
    assert hop_us(timed(0, 0), "verify>draft") == 0
    token, cycle = line_rows(points)
    assert (token["slope"], cycle["slope"]) == pytest.approx((0.4, 1))
    assert cycle["intercept"] == pytest.approx(5000, rel=0.02)
    assert cycle["intercept"] - cycle["free"] == pytest.approx(150)
    assert token["above_us"] == pytest.approx(0, abs=1e-6)
    assert token["hop_us"] == pytest.approx(150)
    assert "| draft>verify | 1 | cycle | 1.00 (1.00–1.00) |" in line_table([token, cycle])
    assert "| draft>verify | 1 | 500 | 8 | 2235 | 5588 |" in point_table(points)
