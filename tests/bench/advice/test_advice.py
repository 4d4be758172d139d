"""Advice, its regret, and the sources' rules."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from made_results import make_results

from bench.advice.advising import advice, measured_advice, options, typed_table
from bench.advice.command import advise
from bench.advice.regret import regrets, rule_regrets, table
from bench.advice.rules import select_architecture, slide
from bench.emulation.law import HostCosts, Work
from bench.report.analysis import Analysis, analyse
from bench.results.records import Load

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
    assert wrong.shown is None or wrong.shown
    assert absent.regret == pytest.approx(1 / 6, abs=0.02)
    assert absent.shown is True
    assert regrets(analysis, "me", {("shipped", 4): "baseline"}) == []


def test_the_rules_are_judged_where_their_choice_was_measured(analysis: Analysis) -> None:
    found = {(item.who, item.concurrency): item for item in rule_regrets(analysis, {})}
    assert found["slide", 4].regret == 0
    assert found["select_architecture", 32].chosen == "pdv"
    assert "| slide | shipped | 32 | pdv | pd |" in table(list(found.values()))


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
    sentences, _, regret = done.output.partition("\n\n")
    assert len(sentences.splitlines()) == 3
    assert "| select_architecture | shipped | 4 | pd | pd | 0.0% |" in regret
