"""The laboratory's records, predictions and page, from trials whose truth is known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from click.testing import CliRunner
from made_results import make_results
from tiny_model import TinyPair

from bench.emulation import studies, trials
from bench.emulation.calibrate_command import calibrate
from bench.emulation.calibration import Stopwatch, axes_of, measure_steps
from bench.emulation.command import emulate
from bench.emulation.contention import measure_contention
from bench.emulation.findings import device_rows, law_rows
from bench.emulation.law import HostCosts, Work
from bench.emulation.records import TRIALS, Trial, TrialFolder
from bench.emulation.report import write_report
from bench.emulation.studies import Scope
from bench.emulation.valley import places, valleys
from bench.report.analysis import analyse
from bench.results.records import Configuration
from bench.results.store import ResultsError
from bench.sweep.command import sweep
from bench.sweep.errors import PlanError
from bench.sweep.pairs import find_pairs, read_pairs
from bench.sweep.plan import configure, make_candidates
from pdv_mp.config import EngineConfig
from pdv_mp.emulation.cost_table import CostTable, read_cost_table
from pdv_mp.emulation.device_name import table_path
from pdv_mp.resources.resources import build_resources

SCOPE = Scope((1, 8, 64), (0.3, 30.0), (0, 1000), 2, 1.0, Work(16, 128))
HOST = HostCosts(s0=200, s1=10, h0=150, h1=4)


def done(trial: Trial, rate: float) -> Trial:
    return msgspec.structs.replace(trial, rate=rate, seconds=1.0, missed_us=(1.0, 20.0))


def host_trials(scope: Scope = SCOPE) -> list[Trial]:
    """As servers whose host costs are HOST would be measured."""
    found = []
    for group in studies.host_study(scope):
        for plan in group:
            n = plan.trial.concurrency
            took = HOST.cycle(n) + 5
            if plan.trial.setup == "pdv":
                took += 2 * HOST.message(n)
            tokens = n * studies.expected_tokens(0.7, plan.trial.k)
            found.append(done(plan.trial, 1e6 * tokens / took))
    return found


def filled(path: Path, off: float = 1.1) -> TrialFolder:
    """A folder with all studies, in which every rate is off what the law said by a factor."""
    folder = TrialFolder(path)
    folder.begin({"machine": {"cpu": "a CPU", "cores": 2}}, {"seed": 0})
    for trial in host_trials():
        folder.add(trial)
    for name, study in (
        ("valley", studies.valley_study),
        ("delay", studies.delay_study),
        ("devices", studies.device_study),
    ):
        groups, predictions = study(SCOPE, HOST)
        folder.predict(name, predictions)
        for plan in (plan for group in groups for plan in group):
            folder.add(done(plan.trial, off * predictions[plan.trial.id]))
    table = dataclasses.replace(read_cost_table(table_path(studies.BASE)), name="cpu")
    for group in studies.validation_study(SCOPE, table):
        for plan in group:
            folder.add(done(plan.trial, 95.0 if plan.trial.kind == "emulated" else 100.0))
    return folder


def test_the_host_study_finds_what_the_host_takes() -> None:
    found = studies.host_costs(host_trials(), 0.7)
    assert found is not None
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(HOST), rel=1e-6)
    assert studies.host_costs([], 0.7) is None
    single = [trial for trial in host_trials() if trial.setup != "pdv"]
    assert studies.host_costs(single, 0.7) is None


def test_a_disturbed_block_does_not_decide_what_the_host_takes() -> None:
    scope = dataclasses.replace(SCOPE, blocks=5)
    found = studies.host_costs(
        [
            msgspec.structs.replace(trial, rate=(trial.rate or 0) / 3) if disturbed else trial
            for trial in host_trials(scope)
            for disturbed in [trial.block == 2 and trial.setup == "unified"]
        ],
        0.7,
    )
    assert found is not None
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(HOST), rel=1e-6)


def test_the_page_says_what_was_expected_and_found(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    text = write_report(folder).read_text(encoding="utf-8")
    assert "Everything here is emulated" in text
    rows = law_rows(folder.trials(), folder.predictions())
    assert {round(row["residual"], 6) for row in rows} == {0.1}
    valley = valleys(places(folder.trials(), folder.predictions()))[-1]
    assert valley.setup == "pdv"
    found = valley.found
    assert found is not None
    assert found is valley.predicted
    assert found.step_ms == 0.3
    assert f"at steps of 0.3 ms and {found.concurrency} clients" in text
    assert "| unified | 1 | 2 | 95 | 100 | 0.950 |" in text
    for name in ("valley_pdv", "valley_pd", "law", "delays", "devices", "validation"):
        assert (tmp_path / f"emulated_{name}.png").stat().st_size > 0
    low, high = (
        min(row["found"] for row in device_rows(rows) if row["concurrency"] == concurrency)
        for concurrency in (8, 64)
    )
    assert low > high  # replicas win more, the more clients there are


def test_a_run_is_taken_up_after_its_last_whole_line(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "laboratory")
    fixed = {"seed": 0}
    assert folder.begin({}, fixed) == []
    first, second = host_trials()[:2]
    folder.add(first)
    folder.predict("valley", {"a": 1.0})
    with (folder.path / TRIALS).open("ab") as file:
        file.write(msgspec.json.encode(second)[:-20])
    assert folder.begin({}, fixed) == [first]
    folder.predict("valley", {"a": 2.0, "b": 3.0})
    assert folder.predictions() == {"valley": {"a": 1.0, "b": 3.0}}
    with pytest.raises(ResultsError, match="whose seed was 0 and not 1"):
        folder.begin({}, {"seed": 1})


def test_measured_and_emulated_results_are_never_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_results(tmp_path / "measured", blocks=1, concurrencies=(1,))
    with pytest.raises(ResultsError, match="never mixed"):
        TrialFolder(folder.path).begin({}, {})
    run = folder.run()
    emulated = Configuration(
        pair=run.pairs[0].name,
        candidate=run.reference,
        options={"model": {"device": "emulated:x#0"}},
    )
    mixed = msgspec.structs.replace(run, configurations=[*run.configurations, emulated])
    monkeypatch.setattr(folder, "run", lambda: mixed)
    with pytest.raises(ResultsError, match="not reported as measured"):
        analyse(folder)
    asked = ["--option", "device=emulated:h200-tinyllama"]
    assert "use pdv-bench emulate" in CliRunner().invoke(sweep, asked).output.replace("\n", " ")
    (pair,) = find_pairs(read_pairs(None))
    given = {"unified": ("unified", {"device": "emulated:h200-tinyllama"})}
    candidate = make_candidates(given, {}, again=True)[0]
    with pytest.raises(PlanError, match="use pdv-bench emulate"):
        configure(pair, candidate)


def test_what_does_not_fit_is_left_out_and_what_is_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = TrialFolder(tmp_path)
    folder.begin({}, {})
    groups = list(studies.host_study(SCOPE))
    folder.add(done(groups[0][0].trial, 10.0))
    ran: list[str] = []

    def run(folder: TrialFolder, plans: Sequence[Any], *rest: Any) -> None:
        ran.extend(plan.trial.id for plan in plans)

    monkeypatch.setattr(trials, "_run_servers", run)
    budget = trials.Budget(1e6)
    work: Any = None
    assert trials.run_trials(folder, groups, work, budget, tmp_path, ran.append) == 0
    every = [plan.trial.id for group in groups for plan in group]
    assert ran == [ran[0], *every[1:]]
    assert ran[0].startswith(f"host: {len(every) - 1} windows, about")
    ran.clear()
    few = trials.Budget(trials.START_SECONDS + 2)  # one server, and one of its trials
    delayed = studies.delay_study(SCOPE, HOST)[0][:1]
    left_out = trials.run_trials(folder, delayed, work, few, tmp_path, ran.append)
    assert (ran[1:], left_out) == ([delayed[0][0].trial.id], 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--studies", "valey"], "is not one of host, validation"),
        (["--studies", "validation"], "pdv-bench calibrate"),
        (["--steps", "0,1"], "must be above 0"),
        (["--steps", "x"], "not a list of numbers"),
        (["--studies", "validation", "--calibrated", "nothing"], "no such file"),
    ],
)
def test_wrong_use_of_emulate_is_one_sentence(arguments: list[str], words: str) -> None:
    found = CliRunner().invoke(emulate, arguments)
    assert found.exit_code == 2
    assert words in found.output


def test_calibrate_writes_the_shipped_tables(tmp_path: Path) -> None:
    path = tmp_path / "h200-llama-2-7b.json"
    arguments = ["--roofline", "h200", "--pair", "llama-2-7b", "--output", str(path)]
    found = CliRunner().invoke(calibrate, arguments)
    assert found.exit_code == 0, found.output
    assert path.read_bytes() == table_path("h200-llama-2-7b").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--roofline", "h200"], "go together"),
        (["--floor-us", "1"], "goes with --roofline"),
        (["--roofline", "h200", "--pair", "tinyllama", "--overlap"], "for what is measured"),
    ],
)
def test_wrong_use_of_calibrate_is_one_sentence(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    found = CliRunner().invoke(calibrate, [*arguments, "--output", str(tmp_path / "x.json")])
    assert found.exit_code == 2
    assert words in found.output


def test_steps_of_a_real_pair_are_timed(tiny_pair: TinyPair) -> None:
    config = EngineConfig.from_options(
        model=str(tiny_pair.verifier),
        draft_model=str(tiny_pair.draft),
        device="cpu",
        max_num_seqs=2,
        queue_factor=1.0,
        max_num_batched_tokens=32,
    )
    said: list[str] = []
    resources = build_resources(config)
    stopwatch = Stopwatch(resources)
    with torch.inference_mode():
        steps = measure_steps(stopwatch, axes_of(resources, 32), 1, said.append)
    assert said == ["round 0 of 1", "round 1 of 1"]
    assert set(steps) == {"prefill", "verify", "prefill_draft", "draft"}
    assert steps["verify"].sequences == (1, 2)
    assert all(
        value >= 0 for costs in steps.values() for p in costs.microseconds for r in p for value in r
    )
    base = read_cost_table(table_path(studies.BASE))
    table = dataclasses.replace(base, steps=steps)
    assert CostTable.from_dict(json.loads(table.to_json())) == table


def test_contention_is_measured_beside_another_process(tiny_pair: TinyPair) -> None:
    config = EngineConfig.from_options(
        model=str(tiny_pair.verifier),
        draft_model=str(tiny_pair.draft),
        device="cpu",
        max_num_seqs=2,
        queue_factor=1.0,
    )
    before = psutil.Process().children()
    with torch.inference_mode():
        stopwatch = Stopwatch(build_resources(config))
        factor = measure_contention(stopwatch, [("verify", 1, 2, 16), ("draft", 1, 1, 16)], 3)
    assert factor >= 1
    assert psutil.Process().children() == before
