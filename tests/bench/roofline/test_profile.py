"""The profile of forward passes: real steps of a small model."""

from __future__ import annotations

from click.testing import CliRunner

from bench.roofline.command import roofline
from bench.roofline.models import ModelCost
from bench.roofline.profile import Profiler, Step, steps, table
from bench.roofline.rates import Rates
from pdv_mp.assets import verifier_path
from pdv_mp.model.architecture import ModelConfig

RATES = Rates("test", 1e10, 1e11)


def test_phases_add_up_to_a_step_and_the_bound_is_that_of_its_work() -> None:
    config = ModelConfig.from_folder(verifier_path())
    profiler = Profiler(config, RATES, most=3, context=60)
    planned = list(steps([1, 3], prompt=40, draft=4))
    assert planned == [
        Step(1, 40, 0),
        *(Step(batch, rows, 40) for batch in (1, 3) for rows in (1, 5)),
    ]
    profiles = [profiler(step) for step in planned]
    for profile in profiles:
        assert profile.seconds > 0
        assert 0.5 < sum(profile.shares.values()) < 1.01
        assert all(share >= 0 for share in profile.shares.values())
    cost = ModelCost.of(config)
    assert profiles[1].bound > cost.step_bytes / RATES.bandwidth
    assert profiles[3].bound > profiles[1].bound
    lines = table(profiles).splitlines()
    assert len(lines) == 2 + len(profiles)
    assert "| 1 × 40 rows, a prompt |" in lines[2]
    assert "| 3 × 5 rows behind 40 tokens |" in lines[6]


def test_only_the_cpu_at_hand_is_profiled() -> None:
    done = CliRunner().invoke(roofline, ["--profile", "--device", "H200"])
    assert done.exit_code == 2
    assert "--profile and --account time float32 on the CPU at hand" in done.output


def test_the_command_prints_the_table() -> None:
    pair = ["--model", str(verifier_path()), "--draft-model", str(verifier_path())]
    small = ["--concurrency", "2", "--prompt-tokens", "16", "--threads", "1"]
    done = CliRunner().invoke(roofline, ["--profile", *pair, *small])
    assert done.exit_code == 0, done.output
    assert "| 2 × 5 rows behind 16 tokens |" in done.output
