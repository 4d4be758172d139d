"""``bench.report.analysis``: a candidate is its name, and nothing is dropped in silence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from made_results import AGAIN, FolderInMemory, Truth, bare_cell, make_results

from bench.report.analysis import Analysis, analyse
from bench.report.comparison import comparisons_in
from bench.results.records import Load
from bench.results.store import ResultsError, ResultsFolder
from bench.statistics import SequentialPlan

SPEEDS = {"unified": 1.3, "pd": 1.0, "pdv": 1.002, "first": 1.0, "second": 1.2, "third": 1.0}


def differing(candidate: str, load: Load) -> float:
    """Some are faster, the more so with more clients."""
    clients = load.concurrency or 1
    return 200.0 * clients**0.5 * SPEEDS[candidate] ** (1 + clients / 8)


FEW_TOKENS: dict[str, Any] = {"tokens": 16, "window": 0.5, "concurrencies": (2, 8, 32)}


def swapped(text: str, one: str, other: str) -> str:
    """With two names exchanged wherever they stand by themselves."""
    names = {one: other, other: one}
    return re.sub(rf"\b({one}|{other})\b", lambda found: names[found[0]], text)


@pytest.mark.parametrize(
    ("candidates", "one", "other", "is_recommended"),
    [
        (("unified", "pd", "pdv"), "unified", "pd", True),
        (("unified", "pd", "pdv"), "pd", "pdv", False),
        ({"first": "unified", "second": "pdv", "third": "pd"}, "second", "third", True),
    ],
)
def test_exchanging_two_names_exchanges_all_that_is_said(
    tmp_path: Path, candidates: Any, one: str, other: str, is_recommended: bool
) -> None:
    share = {"first": 0.2, "second": 0.3}
    folder = make_results(
        tmp_path,
        **FEW_TOKENS,
        candidates=candidates,
        rate=differing,
        share=lambda name, load: share.get(name, 0.1),
    )
    before = analyse(folder)
    assert {"ahead", "behind", "no difference shown"} == {c.verdict for c in before.comparisons}
    for name in ("run.json", "cells.jsonl"):
        path = tmp_path / name
        text = path.read_text(encoding="utf-8")
        path.write_text(swapped(text, one, other), encoding="utf-8")
    after = analyse(ResultsFolder(tmp_path))
    assert repr(after) == swapped(repr(before), one, other)
    (first,), (second,) = before.recommendations, after.recommendations
    assert [swapped(s, one, other) for s in first.sentences] == list(second.sentences)
    chosen = [[choice.candidate for choice in found.choices] for found in (first, second)]
    assert (chosen[0] != chosen[1]) == is_recommended


def test_exchanging_the_cells_of_two_candidates_exchanges_their_verdicts(tmp_path: Path) -> None:
    """Only in the lines of the cells: what ``run.json`` says of topologies stays as it was."""
    before = analyse(
        make_results(
            tmp_path, **FEW_TOKENS, candidates=("unified", "pd"), rate=differing, twin=False
        )
    )
    path = tmp_path / "cells.jsonl"
    path.write_text(swapped(path.read_text(encoding="utf-8"), "unified", "pd"), encoding="utf-8")
    after = analyse(ResultsFolder(tmp_path))
    for found in before.comparisons:
        names = {"unified": "pd", "pd": "unified"}
        other = after.comparison(
            found.pair, found.load, names[found.candidate], names[found.reference]
        )
        assert (other.verdict, other.ratio, other.cause) == (
            found.verdict,
            found.ratio,
            found.cause,
        )
    assert {c.verdict for c in before.comparisons} == {"ahead", "behind"}
    for old, new in zip(before.recommendations, after.recommendations, strict=True):
        assert [c.candidate for c in old.choices] == ["unified"] * 3
        assert [c.candidate for c in new.choices] == ["pd"] * 3
        assert [swapped(s, "unified", "pd") for s in old.sentences] == list(new.sentences)


def test_all_ordered_pairs_are_compared_and_twins_are_the_noise() -> None:
    truth = Truth(
        candidates=("a", "b", "c"), concurrencies=(1, 2), pairs=("x", "y"), tokens=8, window=0.2
    )
    run = truth.run()
    assert comparisons_in(run) == (3 + 1) * 2 * 2
    analysis = analyse(truth.in_memory())
    assert len(analysis.comparisons) == 3 * 2 * 2 * 2
    assert len(analysis.cells) == 4 * 2 * 2
    assert [noise.twin for noise in analysis.noise] == ["a" + AGAIN] * 4
    names = {c.candidate for c in analysis.comparisons}
    assert names == {"a", "b", "c"}
    for found in analysis.comparisons:
        opposite = analysis.comparison(found.pair, found.load, found.reference, found.candidate)
        assert found.ratio is not None
        assert opposite.ratio is not None
        assert found.ratio.estimate * opposite.ratio.estimate == pytest.approx(1)
        assert found.ratio.low * opposite.ratio.high == pytest.approx(1)
        noise = next(n for n in analysis.noise if (n.pair, n.load) == (found.pair, found.load))
        assert found.floor == opposite.floor == noise.floor > 1
    with pytest.raises(KeyError):
        analysis.comparison("x", "C=1", "a", "a" + AGAIN)
    with pytest.raises(KeyError):
        analysis.cell("x", "a", "C=3")


def of_two(rates: dict[str, list[int]], **truth: Any) -> Analysis:
    """Made of tokens by candidate and block, with one load; block 0 is added."""
    known = Truth(candidates=[n for n in rates if AGAIN not in n], concurrencies=(4,), **truth)
    run = known.run()
    cells = [
        bare_cell(run, f"{name}-{block}", name, "C=4", block, tokens)
        for name, each in rates.items()
        for block, tokens in enumerate([each[0], *each])
    ]
    return analyse(FolderInMemory(run, cells, known.end(run)))


STEADY = [1000, 1001, 999, 1000, 1002, 998, 1001, 999]


def test_what_lies_within_the_noise_of_equal_servers_is_no_difference() -> None:
    faster = [round(1.05 * rate) for rate in STEADY]
    rates = {"a": STEADY, "b": faster}
    alone = of_two(rates, twin=False)
    assert alone.comparison("shipped", "C=4", "b", "a").verdict == "ahead"
    assert not alone.comparison("shipped", "C=4", "b", "a").floor_known
    assert "is not known" in " ".join(alone.warnings)
    noisy = of_two({**rates, "a" + AGAIN: [round(0.92 * rate) for rate in STEADY]})
    found = noisy.comparison("shipped", "C=4", "b", "a")
    assert found.verdict == "no difference shown"
    assert noisy.comparison("shipped", "C=4", "a", "b").verdict == "no difference shown"
    assert found.floor == pytest.approx(1 / 0.92, rel=1e-3)
    assert found.smallest_effect is not None
    assert found.smallest_effect > found.floor
    assert noisy.noise[0].holds is False
    assert "Two servers of a differed by 8.7%" in " ".join(noisy.warnings)


def test_a_block_without_tokens_has_failed() -> None:
    analysis = of_two({"a": [*STEADY, 0], "b": [*STEADY, 1000]}, twin=False)
    cell = analysis.cell("shipped", "a", "C=4")
    assert (cell.measured, cell.blocks) == (9, 8)
    assert [(p.block, p.kind, p.reason) for p in cell.problems] == [
        (9, "failed", "no token arrived in the window")
    ]
    found = analysis.comparison("shipped", "C=4", "a", "b")
    assert (found.blocks, found.lost, found.verdict) == (8, 1, "no difference shown")


def test_failed_and_invalid_cells_are_shown() -> None:
    blocks = range(1, 9)
    analysis = analyse(
        Truth(
            candidates=("unified", "pd", "pdv"),
            concurrencies=(2, 4),
            tokens=8,
            failed={
                **{("pdv", "C=4", block): "the server has ended" for block in (0, *blocks)},
                ("pd", "C=2", 3): "it did not start",
            },
            invalid={("pd", "C=4", 5): "the clients were late"},
        ).in_memory()
    )
    dead = analysis.cell("shipped", "pdv", "C=4")
    assert (dead.measured, dead.blocks, len(dead.problems)) == (8, 0, 9)
    assert (dead.throughput, dead.requests_per_s, dead.time_spent) == (None, None, None)
    assert dead.ttft.mean is None
    assert dead.speculation.acceptance_rate is None
    found = analysis.comparison("shipped", "C=4", "pdv", "pd")
    assert (found.verdict, found.ratio, found.cause) == ("failed", None, None)
    late = analysis.cell("shipped", "pd", "C=4")
    assert [(p.block, p.kind, p.reason) for p in late.problems] == [
        (5, "invalid", "the clients were late")
    ]
    # Seven blocks in common are too few, and the reason is a failure.
    hurt = analysis.comparison("shipped", "C=2", "pd", "unified")
    assert (hurt.blocks, hurt.lost, hurt.verdict) == (7, 1, "failed")
    assert analysis.comparison("shipped", "C=2", "pdv", "unified").lost == 0
    said = " ".join(analysis.warnings)
    assert "10 cells of 72 failed" in said
    assert "1 cell of 72 does not count" in said
    assert "it did not start" in said


@pytest.mark.parametrize(
    ("blocks", "failing", "verdict"),
    [
        (3, {2}, "too few blocks"),  # they would be too few without failures
        (3, {1, 2, 3}, "failed"),
        (8, {2}, "failed"),
        (9, {2}, "no difference shown"),
    ],
)
def test_a_comparison_failed_if_failures_are_why_it_lacks_blocks(
    blocks: int, failing: set[int], verdict: str
) -> None:
    truth = Truth(
        candidates=("a", "b"),
        concurrencies=(2,),
        tokens=8,
        window=0.3,
        blocks=blocks,
        failed={("a", "C=2", block): "it died" for block in failing},
    )
    for found in analyse(truth.in_memory()).comparisons:
        assert (found.verdict, found.lost) == (verdict, len(failing))


def test_a_cell_that_was_measured_again_is_taken_as_it_was_last() -> None:
    truth = Truth(candidates=("a", "b"), twin=False, concurrencies=(1,))
    run = truth.run()
    cells = [
        bare_cell(run, f"{name}-{block}", name, "C=1", block, 500)
        for block in range(9)
        for name in ("a", "b")
    ]
    cells.append(bare_cell(run, "a-4-again", "a", "C=1", 4, 700))
    found = analyse(FolderInMemory(run, cells, truth.end(run))).cell("shipped", "a", "C=1")
    assert found.block_throughput[4] == 700
    assert (found.measured, found.blocks) == (8, 8)
    assert [(p.block, p.kind) for p in found.problems] == [(4, "replaced")]


def test_a_run_that_was_cut_off_says_so(tmp_path: Path) -> None:
    truth = {"candidates": ("unified", "pd"), "concurrencies": (2,), "tokens": 8, "blocks": 16}
    analysis = analyse(make_results(tmp_path, **truth, lasting=3, ended=False, precision=0.1))
    assert analysis.end is None
    assert analysis.blocks == 3
    assert analysis.alpha == SequentialPlan(16).alpha_at_end(3, looked=True)
    assert analysis.warnings[0].startswith("The run has not ended, or was cut off: 3 blocks of 16")
    assert any("Too few blocks" in warning for warning in analysis.warnings)
    assert {c.verdict for c in analysis.comparisons} == {"too few blocks"}
    assert all(c.smallest_effect is None for c in analysis.comparisons)
    (recommendation,) = analysis.recommendations
    assert [choice.candidate for choice in recommendation.choices] == [None]
    assert recommendation.sentences[0].startswith("Nothing can be recommended")
    # Its last line was cut off, and so was a block.
    path = tmp_path / "cells.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    assert analyse(ResultsFolder(tmp_path)).cell("shipped", "pd", "C=2").measured == 3
    again = [cell.measured for cell in analyse(ResultsFolder(tmp_path)).cells]
    assert sum(again) == 8


@pytest.mark.parametrize("precision", [0.01, None])
def test_looks_of_a_run_that_was_cut_off_are_paid_for(precision: float | None) -> None:
    truth = Truth(
        candidates=("a", "b"),
        concurrencies=(1,),
        tokens=8,
        window=0.2,
        blocks=16,
        lasting=9,
        ended=False,
        precision=precision,
    )
    alpha = analyse(truth.in_memory()).alpha
    assert alpha == SequentialPlan(16).alpha_at_end(9, looked=precision is not None)
    assert (alpha < 0.05) == (precision is not None)


def test_warm_up_alone_compares_nothing(tmp_path: Path) -> None:
    analysis = analyse(make_results(tmp_path, concurrencies=(2,), tokens=8, lasting=0))
    assert analysis.blocks == 0
    assert all(cell.throughput is None and cell.time_spent for cell in analysis.cells)
    assert {c.verdict for c in analysis.comparisons} == {"too few blocks"}


def test_folders_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"has no run\.json"):
        analyse(ResultsFolder(tmp_path))
    truth = Truth(candidates=("a", "b"), concurrencies=(1,), tokens=8, blocks=1)
    folder = ResultsFolder(tmp_path)
    folder.begin(truth.run())
    with pytest.raises(ResultsError, match="nothing was measured"):
        analyse(folder)
    folder = truth.write(tmp_path)
    run, cells = tmp_path / "run.json", tmp_path / "cells.jsonl"
    text, lines = run.read_text(encoding="utf-8"), cells.read_text(encoding="utf-8")

    def refused(old: str, new: str, message: str) -> None:
        run.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ResultsError, match=message):
            analyse(folder)
        run.write_text(text, encoding="utf-8")

    refused('"name": "b"', '"name": "a"', "each needs a name of its own")
    refused('"twin_of": "a"', '"twin_of": "z"', "is a twin of 'z'")
    refused('"reference": "a"', '"reference": "z"', "the run's reference is 'z'")
    refused('"schema_version": 2', '"schema_version": 1', "schema version 1")
    refused('"name": "b"', '"name": "z"', "of 'b' under 'C=1' with 'shipped'")
    cells.write_text(lines.replace('"block":1', '"block":"x"'), encoding="utf-8")
    with pytest.raises(ResultsError, match=r"cells\.jsonl, line 4"):
        analyse(folder)
    cells.write_text(lines, encoding="utf-8")
    missing = next((tmp_path / "requests").iterdir())
    missing.unlink()
    with pytest.raises(ResultsError, match=missing.name):
        analyse(folder)


@pytest.mark.parametrize(("cores", "warned"), [(0.1, False), (1.2, True)])
def test_a_busy_machine_is_warned_of(cores: float, warned: bool) -> None:
    truth = Truth(candidates=("a", "b"), concurrencies=(1,), tokens=8, host_load=cores)
    said = " ".join(analyse(truth.in_memory()).warnings)
    assert ("Other programs kept 1.2 cores" in said) == warned


def test_requests_that_do_not_end_are_warned_of() -> None:
    analysis = analyse(
        Truth(
            candidates=("a", "b"),
            concurrencies=(8,),
            rate=lambda name, load: 100.0,
            tokens=48,
            window=0.5,
        ).in_memory()
    )
    cell = analysis.cell("shipped", "a", "C=8")
    assert cell.e2e.unfinished > cell.e2e.samples
    assert cell.e2e.oldest_unfinished_ms is not None
    assert any("end-to-end latencies too low" in warning for warning in analysis.warnings)
