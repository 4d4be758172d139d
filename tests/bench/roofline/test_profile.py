"""The profile of forward passes: real steps of a small model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from click.testing import CliRunner

from bench.roofline.command import roofline
from bench.roofline.models import ModelCost
from bench.roofline.profile import (
    Look,
    Profile,
    Profiler,
    Step,
    Timing,
    bound,
    profile,
    steps,
    table,
)
from bench.roofline.rates import Rates
from pdv_mp.assets import verifier_path
from pdv_mp.model.architecture import ModelConfig

RATES = Rates("test", 1e10, 1e11)


@dataclass
class Machine:
    """Says what it is told to, and what it was asked for."""

    bandwidths: Iterator[float]
    asked: list[str] = field(default_factory=list)

    def bandwidth(self, seconds: float) -> float:
        assert seconds > 0
        self.asked.append("bandwidth")
        return next(self.bandwidths)

    def flops(self, seconds: float) -> float:
        assert seconds > 0
        self.asked.append("flops")
        return 1e11


def test_steps_are_profiled_in_rounds_and_phases_add_up() -> None:
    config = ModelConfig.from_folder(verifier_path())
    profiler = Profiler(config, most=3, context=60)
    planned = list(steps([1, 3], prompt=40, draft=4))
    assert planned == [
        Step(1, 40, 0),
        *(Step(batch, rows, 40) for batch in (1, 3) for rows in (1, 5)),
    ]
    machine = Machine(itertools.cycle([1e10, 3e10]))
    profiles = profile(profiler, planned, machine, rounds=2)
    assert machine.asked == ["flops", "bandwidth", "bandwidth"] * 10
    assert [found.step for found in profiles] == planned
    for found in profiles:
        assert len(found.looks) == 2
        for look in found.looks:
            assert look.rates.bandwidth == 2e10
            assert look.bound == bound(config, look.rates, found.step)
            assert look.timing.seconds > 0
            assert 0.5 < sum(look.timing.shares.values()) < 1.01
            assert all(share >= 0 for share in look.timing.shares.values())
        assert found.reached is not None
        assert found.reached.blocks == 2
    lines = table(profiles).splitlines()
    assert len(lines) == 2 + len(profiles)
    assert "| 1 × 40 rows, a prompt |" in lines[2]
    assert "| 3 × 5 rows behind 40 tokens |" in lines[6]


def test_the_bound_of_a_step_is_that_of_its_work() -> None:
    config = ModelConfig.from_folder(verifier_path())
    cost = ModelCost.of(config)
    one, three = (bound(config, RATES, Step(batch, 1, 40)) for batch in (1, 3))
    assert three > one > cost.step_bytes / RATES.bandwidth
    slow = Rates("slow", RATES.bandwidth / 2, RATES.flops / 2)
    assert bound(config, slow, Step(1, 1, 40)) == pytest.approx(2 * one)


def look(seconds: float, bandwidth: float) -> Look:
    shares = {"qkv": 0.3, "out": 0.1, "gate_up": 0.2, "down": 0.1, "head": 0.1, "attend": 0.15}
    return Look(Timing(seconds, shares), Rates("now", bandwidth, 2e11), 1e8 / bandwidth)


def test_the_table_has_medians_and_what_was_reached_beside_what_the_machine_did() -> None:
    step = Step(8, 1, 128)
    paces = [(0.020, 1e10), (0.010, 2e10), (0.005, 4e10)]
    found = Profile(step, tuple(look(seconds, bandwidth) for seconds, bandwidth in paces))
    assert table([found]).splitlines()[2] == (
        "| 8 × 1 row behind 128 tokens | 10.0 | 5.0 | 0.50 (0.50 to 0.50) | 20 (10 to 40) "
        "| 200 (200 to 200) | 80% | 15% | 5% |"
    )
    assert "| 0.50 (once) |" in table([Profile(step, found.looks[:1])])


def test_only_the_cpu_at_hand_is_profiled() -> None:
    done = CliRunner().invoke(roofline, ["--profile", "--device", "H200"])
    assert done.exit_code == 2
    assert "--profile and --account time float32 on the CPU at hand" in done.output


def test_the_command_prints_the_table() -> None:
    pair = ["--model", str(verifier_path()), "--draft-model", str(verifier_path())]
    small = ["--concurrency", "2", "--prompt-tokens", "16", "--threads", "1", "--rounds", "1"]
    done = CliRunner().invoke(roofline, ["--profile", *pair, *small])
    assert done.exit_code == 0, done.output
    assert "| 2 × 5 rows behind 16 tokens |" in done.output
