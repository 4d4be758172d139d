"""Ablations: what is varied can be served, and what is found is said in one sentence."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from made_results import make_results

from bench.ablations import waiting
from bench.ablations.catalogue import ABLATIONS, WAIT_VARIANTS, Ablation
from bench.ablations.command import ablate
from bench.ablations.picture import Point, draw, finding, points_of
from bench.ablations.waiting import measure_waits, wait_points
from bench.report.analysis import analyse
from bench.results.records import Load
from bench.sweep.plan import make_candidates

MADE = Ablation("made", "the largest batch", "unified", "max-num-seqs", ("32", "8"), (1, 8))


@pytest.mark.parametrize("ablation", ABLATIONS.values(), ids=list(ABLATIONS))
def test_what_is_varied_can_be_served(ablation: Ablation) -> None:
    candidates = make_candidates(ablation.candidates, ablation.common, again=True)
    assert [candidate.name for candidate in candidates][:-1] == list(ablation.candidates)
    assert len({str(candidate.options) for candidate in candidates[:-1]}) == len(ablation.values)
    assert ablation.lengths[0].high <= 2048 - ablation.lengths[1].high


def test_the_finding_is_the_largest_difference_that_was_shown(tmp_path: Path) -> None:
    def rate(candidate: str, load: Load) -> float:
        slow = candidate.endswith("=8") and load.concurrency == 8
        return 50.0 if slow else 100.0

    names = dict.fromkeys(MADE.candidates, "unified")
    analysis = analyse(make_results(tmp_path, candidates=names, concurrencies=(1, 8), rate=rate))
    points = points_of(MADE, analysis)
    assert [(point.value, point.concurrency) for point in points] == [("8", 1), ("8", 8)]
    picture = draw(MADE, analysis)
    assert picture is not None
    assert re.fullmatch(
        "The largest batch: 8 yields 5.% less than 32 with 8 clients", picture.title
    )
    picture.write(tmp_path)
    assert (tmp_path / "ablation_made.png").stat().st_size > 0


def test_no_finding_is_made_up() -> None:
    alike = Point("8", 1, 1.02, 0.9, 1.1, "no difference shown")
    few = dataclasses.replace(alike, verdict="too few blocks")
    assert finding("the batch", "32", [alike]) == (
        "The batch makes no difference that was shown (intervals reach 10% from 32)"
    )
    failed = dataclasses.replace(alike, ratio=3.0, high=4.0, verdict="failed")
    assert finding("the batch", "32", [alike, failed, few]).endswith(
        "(intervals reach 10% from 32; 2 of 3 were not compared)"
    )
    assert finding("the batch", "32", [failed, few]).endswith("too few blocks to compare")
    assert finding("the batch", "32", [few]).endswith("too few blocks to compare")
    assert finding("the batch", "32", []).endswith("too few blocks to compare")


def test_waits_of_other_programs_or_fewer_rounds_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def measure(variants: object, load: waiting.Load, given: object) -> object:
        asked.append(load.rounds)
        rates = [float(len(asked))] * load.rounds
        return SimpleNamespace(cells={("pdv wait=spin", 1): SimpleNamespace(rates=rates)})

    monkeypatch.setattr(waiting, "measure", measure)
    monkeypatch.setattr(waiting, "source_digest", lambda: "first")
    found = measure_waits(tmp_path, 2)
    assert found == {"pdv wait=spin": {"1": [1.0, 1.0]}}
    assert measure_waits(tmp_path, 2) == found
    assert asked == [2]
    assert measure_waits(tmp_path, 3) == {"pdv wait=spin": {"1": [2.0, 2.0, 2.0]}}
    monkeypatch.setattr(waiting, "source_digest", lambda: "second")
    measure_waits(tmp_path, 3)
    assert asked == [2, 3, 3]


def test_waits_are_compared_in_pairs() -> None:
    first, hybrid, spin = WAIT_VARIANTS
    base = [100.0, 120.0, 90.0, 110.0, 105.0, 95.0, 101.0, 99.0]
    slow = [value * (0.7 + 0.001 * place) for place, value in enumerate(base)]
    found = wait_points({first: {"8": base}, hybrid: {"8": base[:3]}, spin: {"8": slow}})
    assert [(point.value, point.concurrency, point.verdict) for point in found] == [
        ("spin", 8, "behind")
    ]


def test_the_page_is_made_again_of_all_that_is_there(tmp_path: Path) -> None:
    ablation = ABLATIONS["queue-factor"]
    names = dict.fromkeys(ablation.candidates, "unified")
    make_results(tmp_path / ablation.name, candidates=names, concurrencies=ablation.loads)
    first = [100.0 + place for place in range(8)]
    rates = {name: {"1": [rate * 0.8 for rate in first]} for name in WAIT_VARIANTS[1:]}
    (tmp_path / "wait").mkdir()
    kept = {"facts": {}, "rates": {WAIT_VARIANTS[0]: {"1": first}, **rates}}
    (tmp_path / "wait" / waiting.RATES).write_text(json.dumps(kept), encoding="utf-8")
    done = CliRunner().invoke(ablate, ["--report-only", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "ablations.md").read_text(encoding="utf-8")
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert titles[0].startswith("## How many requests are admitted beyond the batch")
    assert titles[1] == (
        "## How processes wait for messages: hybrid yields 20% less than block with 1 client"
    )
    nothing = CliRunner().invoke(ablate, ["--report-only", "--output", str(tmp_path / "x")])
    assert nothing.exit_code == 1
    assert nothing.output.strip().endswith("x has no ablations")


@pytest.mark.parametrize(("name", "words"), [("streams", "needs a GPU"), ("x", "is not one of")])
def test_what_cannot_be_measured_is_refused(name: str, words: str) -> None:
    done = CliRunner().invoke(ablate, ["--only", name])
    assert done.exit_code == 2
    assert words in done.output
