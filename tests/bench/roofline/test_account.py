"""The parts of the time that requests take."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from bench.roofline.account import Account, Accountant, account_table
from bench.roofline.bounds import CellWork, cell_bound, prefill_seconds, step_seconds
from bench.roofline.command import roofline
from bench.roofline.models import ModelCost
from bench.roofline.rates import Rates
from pdv_mp.assets import draft_path, verifier_path
from pdv_mp.model.architecture import ModelConfig

RATES = Rates("test", 1e10, 1e11)
VERIFIER, DRAFT = (
    ModelCost.of(ModelConfig.from_folder(path)) for path in (verifier_path(), draft_path())
)


def record(stage: str, sequences: int, rows: int, seconds: float, **more: int) -> dict[str, Any]:
    ended = round(seconds * 1e9)
    times = {"started_ns": 0, "ended_ns": ended, "discarded": 0}
    return {"stage": stage, "sequences": sequences, "rows": rows, **times, **more}


def test_the_bounds_own_batches_at_their_least_time_leave_nothing_to_explain() -> None:
    """Plain decoding of two requests, all in step."""
    work = CellWork(2, 40, 11)
    context = 40 + 11 / 2
    prompt = prefill_seconds(RATES, VERIFIER, 2, 40)
    step = step_seconds(RATES, VERIFIER, 2, 1, context)
    batches = [record("prefill", 2, 80, prompt), *[record("verify", 2, 2, step)] * 10]
    accountant = Accountant(RATES, VERIFIER, None)
    found = accountant.account(batches, work, prompt + 10 * step)
    assert found.seconds == pytest.approx(found.bound, rel=1e-6)
    assert found.bound == pytest.approx(22 / cell_bound(RATES, VERIFIER, None, work))


def test_each_part_is_what_was_added_to_it() -> None:
    work = CellWork(2, 40, 11)
    context = 40 + 11 / 2
    prompt = prefill_seconds(RATES, VERIFIER, 2, 40)
    both = step_seconds(RATES, VERIFIER, 2, 1, context)
    one = step_seconds(RATES, VERIFIER, 1, 1, context)
    # One of the two goes on alone for five steps, steps take twice as long, and there are pauses.
    batches = [
        record("prefill", 2, 80, 2 * prompt),
        *[record("verify", 2, 2, 2 * both)] * 10,
        *[record("verify", 1, 1, 2 * one)] * 5,
    ]
    least = prompt + 10 * both + 5 * one
    found = Accountant(RATES, VERIFIER, None).account(batches, work, 2 * least + 0.25)
    assert found.batches == pytest.approx(5 * one, rel=1e-3)
    assert found.kernels == pytest.approx(least)
    assert found.between == pytest.approx(0.25)
    assert found.seconds == pytest.approx(2 * least + 0.25)


def test_drafts_count_with_their_model_and_say_how_often_they_are_kept() -> None:
    context = 40 + 11 / 2
    draft = 4 * step_seconds(RATES, DRAFT, 1, 1, context)
    verify = step_seconds(RATES, VERIFIER, 1, 5, context)
    batches = [record("draft", 1, 4, draft), record("verify", 1, 5, verify, discarded=2)]
    found = Accountant(RATES, VERIFIER, DRAFT).account(batches, CellWork(1, 40, 11), 1.0)
    assert found.kernels == pytest.approx(0, abs=1e-8)
    kept = found.acceptance * (1 - found.acceptance**4) / (1 - found.acceptance)
    assert kept == pytest.approx(2)


def test_the_table_has_a_row_for_each_concurrency() -> None:
    accounts = [Account(8, 1, 1, 1, 1, 0.5), Account(8, 3, 1, 1, 1, 0.7), Account(1, 1, 0, 0, 0, 0)]
    *_, eight, one = account_table(accounts).splitlines()
    assert eight == "| 8 | 2 | 10.00 | 0.60 | 40% | 20% | 20% | 20% |"
    assert one == "| 1 | 1 | 1.00 | 0.00 | 100% | 0% | 0% | 0% |"


def test_a_server_is_asked_and_its_time_accounted_for(run_place: object) -> None:
    pair = ["--model", str(verifier_path()), "--draft-model", str(draft_path())]
    load = ["--concurrency", "2", "--prompt-tokens", "16", "--output-tokens", "12"]
    done = CliRunner().invoke(roofline, ["--account", *pair, *load, "--rounds", "1"])
    assert done.exit_code == 0, done.output
    cells = [cell.strip() for cell in done.output.splitlines()[-1].split("|")[1:-1]]
    assert cells[:2] == ["2", "1"]
    shares = [int(cell.rstrip("%")) for cell in cells[4:]]
    assert sum(shares) == pytest.approx(100, abs=2)
    assert 0 <= shares[-1] < 100  # its batches take a part of the time, and do not overlap


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--account", "--profile"], "do not go together"),
        (["--account", "--device", "H200"], "time float32 on the CPU at hand"),
    ],
)
def test_what_cannot_be_accounted_for_is_refused(options: list[str], words: str) -> None:
    done = CliRunner().invoke(roofline, options)
    assert done.exit_code == 2
    assert words in done.output


def test_a_shape_without_weights_is_one_sentence() -> None:
    done = CliRunner().invoke(roofline, ["--account", "--model", "smollm-135m"])
    assert done.exit_code == 1
    assert "smollm-135m" in done.output
