"""``pdv-bench gateway``: its interval, its table, and a short run."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner
from tiny_model import TinyPair

from bench.gateway.command import gateway
from bench.gateway.measuring import Interval


def test_an_interval_holds_the_median() -> None:
    found = Interval.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert found.value == 3.0
    assert 1.0 <= found.low <= 3.0 <= found.high <= 100.0
    assert str(Interval.of([2.0, 2.0])) == "2 (2 to 2)"


def test_a_short_run(tiny_pair: TinyPair, run_place: object) -> None:
    models = ["--model", str(tiny_pair.verifier), "--draft-model", str(tiny_pair.draft)]
    options = ["--streams", "4", "--tokens", "24", "--rounds", "2", "--pairs", "10"]
    done = CliRunner().invoke(gateway, [*models, *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d.e+-]+) \(", done.stdout, re.MULTILINE))
    assert len(rows) == 4
    cost = next(float(value) for name, value in rows.items() if name.startswith("CPU"))
    assert cost > -1e-6  # of so few events it may be nothing, but for rounding
    events, each = re.findall(r"(\d+) events of ([\d.]+) tokens", done.stdout)[0]
    assert int(events) * float(each) == pytest.approx(2 * 4 * 24, rel=0.01)
