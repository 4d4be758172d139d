"""Advice, its regret, and the sources' rules."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from made_results import Truth, make_results

from bench.advice.advising import advice, measured_advice, options, typed_table
from bench.advice.command import advise
from bench.advice.regret import regrets, rule_regrets, table, verifier_sizes
from bench.advice.rules import RULES, VerifierSize, select_architecture, slide
from bench.emulation.law import HostCosts, Work
from bench.report.analysis import Analysis, analyse
from bench.results.records import Load
from bench.roofline import ModelCost
from bench.roofline.recorded import KEY, PairCosts, Recorded

RATES = {"unified": 100.0, "pd": 120.0, "pdv": 90.0}


def rate(candidate: str, load: Load) -> float:
    return RATES[candidate] * (load.concurrency or 1)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    path = tmp_path_factory.mktemp("made") / "results"
    return analyse(make_results(path, concurrencies=(4, 32), rate=rate))


@pytest.mark.parametrize(
    ("concurrency", "size", "readme", "tree"),
    [
        (1, 70, "pd", "pdv"),
        (4, 1, "pd", "pd"),
        (5, 34, "pdv", "pdv"),
        (8, 34, "pdv", "pd"),
        (16, 7, "pd", "pd"),
        (24, 7, "pd", "pd"),
        (24, 34, "pdv", "pdv"),
        (32, 1, "pdv", "pdv"),
        (128, 1, "pdv", "pdv"),
    ],
)
def test_the_sources_rules(concurrency: int, size: float, readme: str, tree: str) -> None:
    assert select_architecture(concurrency, size) == readme
    assert slide(concurrency, size) == tree


def test_regret_is_what_is_lost_to_the_best(analysis: Analysis) -> None:
    right, wrong, absent = regrets(
        analysis, "me", {("shipped", 4): "pd", ("shipped", 32): "pdv"}
    ) + regrets(analysis, "me", {("shipped", 4): "unified"})
    assert (right.regret, right.shown) == (0.0, False)
    assert wrong.regret == pytest.approx(0.25, abs=0.02)
    assert wrong.best == "pd"
    assert wrong.shown is True
    assert absent.regret == pytest.approx(1 / 6, abs=0.02)
    assert absent.shown is True
    assert regrets(analysis, "me", {("shipped", 4): "baseline"}) == []


def test_the_rules_are_judged_where_their_choice_was_measured(analysis: Analysis) -> None:
    every = rule_regrets(analysis, {"shipped": VerifierSize(0.1, 0.02)})
    found = {(item.who, item.concurrency): item for item in every}
    assert found["slide", 4].regret == 0
    assert found["select_architecture", 32].chosen == "pdv"
    assert "| slide | shipped | 32 | pdv | pd |" in table(list(found.values()))


def test_the_rules_are_asked_with_the_size_that_a_pair_has(analysis: Analysis) -> None:
    assert rule_regrets(analysis, {}) == []
    large = rule_regrets(analysis, {"shipped": VerifierSize(67.0, 34.0)})
    assert {(item.who, item.concurrency): item.chosen for item in large} == {
        ("select_architecture", 4): "pd",
        ("select_architecture", 32): "pdv",
        ("slide", 4): "pdv",
        ("slide", 32): "pdv",
    }
    assert RULES["select_architecture"](8, VerifierSize(13.5, 7.0)) == "pdv"
    assert RULES["slide"](20, VerifierSize(13.5, 7.0)) == "pd"


def recorded(verifier: ModelCost) -> Recorded:
    """What a run keeps of its machine and of such a verifier."""
    return Recorded("a CPU", True, 1e10, 1e11, {"shipped": PairCosts(verifier, verifier)})


def test_a_verifier_is_as_large_as_its_shape_says(analysis: Analysis) -> None:
    assert verifier_sizes(analysis) == {}
    codellama = ModelCost(48, 8192, 64, 8, 128, 22016, 32000, 2)
    kept = msgspec.to_builtins(recorded(codellama))
    environment = {**analysis.run.environment, KEY: kept}
    run = msgspec.structs.replace(analysis.run, environment=environment)
    (size,) = verifier_sizes(dataclasses.replace(analysis, run=run)).values()
    assert size == (pytest.approx(67.5, abs=0.2), 34.0)


def test_nothing_is_recommended_of_too_few_blocks(tmp_path: Path) -> None:
    few = analyse(make_results(tmp_path, candidates={"unified": "unified", "pd": "pd"}, blocks=3))
    with pytest.raises(ValueError, match="nothing can be recommended for the pair 'shipped'"):
        measured_advice(few, "shipped", 8)


def test_what_lacks_blocks_is_named_and_judged_by_nobody(tmp_path: Path) -> None:
    failed = {("pdv", "C=8", block): "it died" for block in range(3)}
    truth = Truth(candidates=("unified", "pd", "pdv"), concurrencies=(8,), blocks=8, failed=failed)
    found = analyse(truth.in_memory())
    _, _, sure = measured_advice(found, "shipped", 8)
    assert sure.endswith("not compared: pdv.")
    (judged,) = regrets(found, "me", {("shipped", 8): "pdv"})
    assert judged.shown is (False if judged.best == "pdv" else None)


def test_advice_from_a_measured_run(analysis: Analysis) -> None:
    what, expects, sure = measured_advice(analysis, "shipped", 28)
    assert what.startswith("Use pd ")
    assert "with 32 clients at a time, the nearest to 28" in expects
    assert "unified" in sure


def test_a_typed_table_adds_up() -> None:
    steps = typed_table(300, 2000, 10, 500, 0.7)
    assert steps.step_us("verify", 1, 1, 400) == pytest.approx(2000)
    assert steps.step_us("verify", 8, 5, 0) == pytest.approx(2000 + 10 * 39)
    assert steps.step_us("draft", 64, 1, 0) == pytest.approx(300)
    assert steps.step_us("prefill", 1, 100, 0) == pytest.approx(500)
    assert steps.step_us("prefill", 5.5, 400, 0) == pytest.approx(5.5 * 500)


def test_dear_messages_are_advised_against() -> None:
    steps = typed_table(300, 2000, 0, 0, 0.7)
    found = options(steps, HostCosts(50, 0, 1000, 0), 8, Work(16, 128), 1)
    assert found[0].where.topology == "unified"
    assert found[-1].where.topology == "pdv"
    sentences = advice(found, 8, 0.05, "typed in")
    assert len(sentences) == 3
    assert "--topology unified with --num-speculative-tokens" in sentences[0]
    assert "measure these" in sentences[2]  # pd has no message in its cycles


def test_with_two_devices_and_many_clients_replicas_are_advised() -> None:
    steps = typed_table(300, 2000, 50, 0, 0.7)
    best = options(steps, HostCosts(0, 0, 0, 0), 256, Work(16, 128), 2)[0]
    assert best.where.replicas == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing option '--concurrency'"),
        (["-c", "4"], "give --costs, or --draft-ms and --verify-ms, or --results"),
        (["-c", "4", "--draft-ms", "1", "--verify-ms", "2"], "go together"),
        (["-c", "4", "--costs", "h200-llama-2-7b", "--draft-ms", "1"], "exclude each other"),
        (["-c", "4", "--costs", "h200-llama-2-7b", "--acceptance", "1.2"], "0<=x<=1"),
        (["-c", "4", "--costs", "h200-llama-2-7b", "--hop-us", "1,2,3"], "not of the form"),
        (["-c", "4", "--costs", "nothing"], "no such file"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(advise, arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_the_command_says_three_sentences_and_its_regret(tmp_path: Path) -> None:
    make_results(tmp_path / "made", concurrencies=(4,), rate=rate)
    arguments = ["-c", "4", "--costs", "h200-llama-2-7b", "--results", str(tmp_path / "made")]
    done = CliRunner().invoke(advise, arguments)
    assert done.exit_code == 0, done.output
    assert "does not say how large the verifier of shipped is" in done.output
    assert "select_architecture" not in done.output
    kept = tmp_path / "made" / "run.json"
    run = json.loads(kept.read_text(encoding="utf-8"))
    run["environment"][KEY] = msgspec.to_builtins(recorded(ModelCost(10, 256, 4, 2, 64, 640, 4, 4)))
    kept.write_text(json.dumps(run), encoding="utf-8")
    done = CliRunner().invoke(advise, arguments)
    assert done.exit_code == 0, done.output
    sentences, _, regret = done.output.partition("\n\n")
    assert len(sentences.splitlines()) == 3
    assert "| select_architecture | shipped | 4 | pd | pd | 0.0% |" in regret
