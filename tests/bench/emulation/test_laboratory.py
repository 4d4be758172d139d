"""The laboratory's records, predictions and page, from trials whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import time
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

from bench.emulation import command, studies, trials
from bench.emulation.calibrate_command import calibrate
from bench.emulation.calibration import Stopwatch, axes_of, measure_steps
from bench.emulation.command import emulate
from bench.emulation.contention import measure_contention
from bench.emulation.findings import device_rows, host_rows, law_rows
from bench.emulation.law import HostCosts, Work
from bench.emulation.recalibration import recalibrated
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
from pdv_mp.resources.resources import Resources, build_resources

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
    for block in range(SCOPE.blocks):
        for group in studies.validation_study(SCOPE, table, block):
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


def test_what_cycles_took_stands_beside_the_lines_through_them() -> None:
    rows = host_rows(host_trials(), 0.7, HOST)
    places = [(row["setup"], row["concurrency"]) for row in rows]
    assert places == [
        (name, clients) for name in ("unified", "pd", "pdv") for clients in (1, 8, 64)
    ]
    for row in rows:
        assert row["found"] == pytest.approx(row["expected"], rel=1e-6)
    assert rows[2]["found"] == pytest.approx(200 + 10 * 64, rel=1e-6)
    assert rows[-1]["found"] == pytest.approx(200 + 10 * 64 + 2 * (150 + 4 * 64), rel=1e-6)
    slow = [
        msgspec.structs.replace(trial, rate=(trial.rate or 0) / (1 + trial.block))
        for trial in host_trials()
    ]
    first = host_rows(slow, 0.7, HOST)[0]
    assert first["blocks"] == 2
    assert first["least"] == pytest.approx(210, rel=1e-6)
    assert first["most"] == pytest.approx(2 * 215 - 5, rel=1e-6)


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
    assert "| pdv | 64 | 2 | 1652 | 1652 to 1652 | 1652 |" in text
    for name in ("host", "valley_pdv", "valley_pd", "law", "delays", "devices", "validation"):
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
    folder.predict("valley", {first.id: 1.0, "a": 1.0})
    with (folder.path / TRIALS).open("ab") as file:
        file.write(msgspec.json.encode(second)[:-20])
    assert folder.begin({}, fixed) == [first]
    folder.predict("valley", {first.id: 2.0, "a": 2.0, "b": 3.0})
    assert folder.predictions() == {"valley": {first.id: 1.0, "a": 2.0, "b": 3.0}}
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
    assert ran == [ran[0], *every]
    assert ran[0].startswith(f"host: {len(every)} windows, about")
    for plan in groups[0][:3]:
        folder.add(done(plan.trial, 10.0))
    ran.clear()
    assert trials.run_trials(folder, groups, work, budget, tmp_path, ran.append) == 0
    assert ran == [ran[0], *every[3:]]
    ran.clear()
    few = trials.Budget(trials.START_SECONDS + 2)  # one server, and one of its trials
    delayed = studies.delay_study(SCOPE, HOST)[0][:1]
    left_out = trials.run_trials(folder, delayed, work, few, tmp_path, ran.append)
    assert (ran[1:], left_out) == ([delayed[0][0].trial.id], 2)


def test_each_block_of_the_validation_has_a_table_of_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpu.json"
    base = dataclasses.replace(read_cost_table(table_path(studies.BASE)), name="cpu")
    path.write_text(base.to_json(), encoding="utf-8")
    calibrations: list[dict[str, str]] = []
    served: dict[int, set[float]] = {}

    def recalibrated(table: CostTable, options: dict[str, str], scratch: Path) -> CostTable:
        assert (table, scratch.is_dir()) == (base, True)
        calibrations.append(options)
        return dataclasses.replace(table, launch_us=float(len(calibrations)))

    def run(folder: TrialFolder, plans: Sequence[Any], *rest: Any) -> None:
        for plan in plans:
            kind, table = plan.trial.kind, plan.setup.table
            folder.add(done(plan.trial, 95.0 if kind == "emulated" else 100.0))
            if plan.trial.study == "validation" and table is not None:
                served.setdefault(plan.trial.block, set()).add(table.launch_us)

    monkeypatch.setattr(command, "recalibrated", recalibrated)
    monkeypatch.setattr(trials, "_run_servers", run)
    arguments = ["--studies", "validation", "--calibrated", str(path), "--option", "threads=1"]
    arguments += ["--concurrency", "1,8", "--blocks", "3", "--output", str(tmp_path / "found")]
    found = CliRunner().invoke(emulate, arguments)
    assert found.exit_code == 0, found.output
    assert served == {0: {1.0}, 1: {2.0}, 2: {3.0}}
    assert calibrations == 3 * [{"threads": "1"}]
    assert "| pdv | 8 | 3 | 95 | 100 | 0.950 |" in found.output
    again = CliRunner().invoke(emulate, arguments)
    assert again.exit_code == 0, again.output
    assert len(calibrations) == 3  # what is done is not calibrated for


def test_a_table_is_calibrated_again_in_a_process_of_its_own(tmp_path: Path) -> None:
    base = dataclasses.replace(read_cost_table(table_path(studies.BASE)), acceptance=0.61)
    options = {"threads": "1", "max-num-seqs": "1", "queue-factor": "1", "device": "cpu"}
    found = recalibrated(base, options, tmp_path)
    assert (found.name, found.acceptance) == (base.name, 0.61)
    assert found.host_core
    assert found.steps["verify"].sequences == (1,)
    with pytest.raises(ResultsError, match=r"calibrated again: .*no option 'thread'"):
        recalibrated(base, {"thread": "1"}, tmp_path)


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


@pytest.fixture
def tiny_resources(tiny_pair: TinyPair) -> Resources:
    return build_resources(
        EngineConfig.from_options(
            model=str(tiny_pair.verifier),
            draft_model=str(tiny_pair.draft),
            device="cpu",
            max_num_seqs=2,
            queue_factor=1.0,
            max_num_batched_tokens=32,
        )
    )


def test_steps_of_a_real_pair_are_timed(tiny_resources: Resources) -> None:
    said: list[str] = []
    stopwatch = Stopwatch(tiny_resources)
    with torch.inference_mode():
        steps = measure_steps(stopwatch, axes_of(tiny_resources, 32), 1, said.append)
    assert said == ["round 0 of 1", "round 1 of 1"]
    assert set(steps) == {"prefill", "verify", "prefill_draft", "draft"}
    assert steps["verify"].sequences == (1, 2)
    for costs in steps.values():
        values = [value for points in costs.microseconds for row in points for value in row]
        # What choosing tokens takes is subtracted, which of so small a model may leave nothing.
        assert max(values) > 0 <= min(values)
    base = read_cost_table(table_path(studies.BASE))
    table = dataclasses.replace(base, steps=steps)
    assert CostTable.from_dict(json.loads(table.to_json())) == table


def test_contention_is_measured_beside_another_process(tiny_resources: Resources) -> None:
    before = psutil.Process().children()
    with torch.inference_mode():
        stopwatch = Stopwatch(tiny_resources)
        factor = measure_contention(stopwatch, [("verify", 1, 2, 16), ("draft", 1, 1, 16)], 3)
    assert factor >= 1
    assert psutil.Process().children() == before


class _TwiceAsLongBeside:
    """A stopwatch that sees whether its copy in another process runs."""

    def __init__(self) -> None:
        self._ticks, self._here = mmap.mmap(-1, 8), os.getpid()

    def microseconds(self, *point: object) -> float:
        before = self._ticks[:8]
        if os.getpid() != self._here:
            self._ticks[:8] = (int.from_bytes(before, "little") + 1).to_bytes(8, "little")
            return 1.0
        time.sleep(0.02)
        return 100.0 if self._ticks[:8] == before else 200.0


def test_contention_is_the_factor_by_which_steps_take_longer_beside_the_other_process() -> None:
    stopwatch: Any = _TwiceAsLongBeside()
    assert measure_contention(stopwatch, [("verify", 1, 2, 16)], 3) == pytest.approx(2.0)
