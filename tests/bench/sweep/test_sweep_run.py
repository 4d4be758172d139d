"""``bench.sweep.sweep``: the order of cells, when it stops, and that nothing is measured twice."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from simulated_sweep import Simulated, Told, made_run

from bench.report.comparison import comparisons_in
from bench.results.records import CellRecord, End, Load, Pair, Run
from bench.results.store import ResultsFolder
from bench.statistics import ALPHA, SequentialPlan, paired_ratio
from bench.sweep.display import Display, length
from bench.sweep.plan import Place, places
from bench.sweep.sweep import ALL_DONE, KNOWN_WELL, Sweep

PAIRS = [Pair(name="small"), Pair(name="big")]


def run_sweep(folder: ResultsFolder, run: Run, simulated: Simulated, budget: float = 1e6) -> End:
    if not folder.exists:
        folder.begin(run)
    return Sweep(folder, run, simulated.open_pair, Told(), budget).run()


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    return ResultsFolder(tmp_path / "results")


def test_each_candidate_has_each_turn_equally_often() -> None:
    run = made_run(blocks=6)
    turns: Counter[Any] = Counter()
    for block in range(1, 7):
        found = list(places(run, 0, block))
        assert len({place.id for place in found}) == 6
        assert [place.load for place in found] == [0, 0, 0, 1, 1, 1]
        turns.update((place.load, place.candidate, place.order) for place in found)
    assert set(turns.values()) == {2}
    assert len(turns) == 18


def test_all_blocks_of_all_pairs_are_measured_one_pair_after_the_other(
    folder: ResultsFolder,
) -> None:
    run = made_run(pairs=PAIRS)
    simulated, told = Simulated(run), Told()
    folder.begin(run)
    end = Sweep(folder, run, simulated.open_pair, told, 1e6).run()
    expected = [place.id for pair in (0, 1) for b in range(3) for place in places(run, pair, b)]
    assert simulated.measured == expected
    assert [cell.id for cell in folder.cells()] == expected
    assert simulated.opened == [0, 1]
    assert (end.blocks, end.looked, end.alpha, end.stopped) == (2, False, ALPHA, ALL_DONE)
    assert folder.stopped() == end
    assert told.known_cells == 0
    assert [left for left, _ in told.left] == list(range(len(expected) - 1, -1, -1))
    assert told.blocks == [(pair.name, block) for pair in PAIRS for block in range(3)]


@pytest.mark.parametrize(
    ("noise", "blocks", "stopped"), [(0.003, 8, KNOWN_WELL), (0.01, 24, KNOWN_WELL), (1, 30, "")]
)
def test_a_sweep_ends_once_all_ratios_are_known_well_enough(
    folder: ResultsFolder, noise: float, blocks: int, stopped: str
) -> None:
    run = made_run(blocks=30, precision=0.02)
    end = run_sweep(folder, run, Simulated(run, noise))
    plan = SequentialPlan(30)
    alpha = plan.alpha_at(blocks) if stopped else plan.alpha_at_end(30, looked=True)
    assert (end.blocks, end.looked, end.alpha) == (blocks, True, alpha)
    assert end.stopped == (stopped or ALL_DONE)
    cells = folder.cells()
    widths = [
        width(folder, cells, load.name, name, alpha / comparisons_in(run))
        for load in run.loads
        for name in ("two", "one (again)")
    ]
    assert (max(widths) <= 1.02**2) == bool(stopped)


def width(
    folder: ResultsFolder, cells: list[CellRecord], load: str, name: str, alpha: float
) -> float:
    """Of the interval of a candidate's ratio, upper over lower end; block 0 does not count."""
    rates: dict[str, list[float]] = {"one": [], name: []}
    for cell in cells:
        if cell.load == load and cell.block and cell.candidate in rates:
            (found,) = folder.requests(cell)
            rates[cell.candidate].append(float(found.events[0][1]))
    ratio = paired_ratio(rates[name], rates["one"], alpha)
    return ratio.high / ratio.low


@pytest.mark.parametrize("candidate", [1, 2])
def test_each_candidate_and_the_twin_must_be_known_well(
    folder: ResultsFolder, candidate: int
) -> None:
    run = made_run(blocks=12, precision=0.02)
    simulated = Simulated(run, 0.003)
    simulated.noisy = {candidate}
    assert run_sweep(folder, run, simulated).stopped == ALL_DONE


def test_one_wide_interval_keeps_a_sweep_going(folder: ResultsFolder) -> None:
    run = made_run(blocks=12, precision=0.02)
    simulated = Simulated(run, 0.003)
    # In one load, one candidate fails in all blocks but one: there is no interval.
    simulated.failing = {Place(0, block, 1, 1, 0).id for block in range(12)}
    end = run_sweep(folder, run, simulated)
    assert (end.blocks, end.stopped) == (12, ALL_DONE)
    assert sum(cell.failed is not None for cell in folder.cells()) == 12


def test_no_block_begins_that_would_not_end_in_the_budget(folder: ResultsFolder) -> None:
    run = made_run(blocks=8)
    clock = Simulated(run, took=10.0)  # a block is 6 cells, 60 s
    end = run_sweep(folder, run, clock, budget=59.0)
    assert (end.blocks, end.stopped) == (0, "the budget of 59 s was spent")
    assert end.alpha == ALPHA
    assert len(clock.measured) == 6


def test_a_block_that_was_begun_is_finished_whatever_the_budget(folder: ResultsFolder) -> None:
    run = made_run()
    folder.begin(run)
    simulated = Simulated(run, took=10.0)
    for place in [*places(run, 0, 0), *list(places(run, 0, 1))[:3]]:
        folder.add(*simulated.measure(place))
    end = run_sweep(folder, run, simulated, budget=1.0)
    assert (end.blocks, end.stopped) == (1, "the budget of 1 s was spent")
    assert len(folder.cells()) == 12


def test_pairs_share_the_budget_and_the_last_one_has_what_is_left(folder: ResultsFolder) -> None:
    run = made_run(pairs=PAIRS, blocks=1)
    end = run_sweep(folder, run, Simulated(run, took=10.0), budget=100.0)
    # Half of the budget is less than the 60 s that a block takes.
    assert (end.blocks, end.stopped) == (0, "the budget of 100 s was spent")
    assert [cell.block for cell in folder.cells()] == [0] * 6 + [0] * 6 + [1] * 6


def test_a_pair_without_time_is_not_begun(folder: ResultsFolder) -> None:
    run = made_run(pairs=PAIRS, blocks=1)
    folder.begin(run)
    simulated = Simulated(run, took=10.0)
    for place in [*places(run, 0, 0), *places(run, 0, 1)]:
        folder.add(*simulated.measure(place))
    end = run_sweep(folder, run, simulated, budget=125.0)  # and a block of the second takes 6 s
    assert (end.blocks, end.stopped) == (0, "the budget of 125 s was spent")
    assert (len(folder.cells()), simulated.opened) == (12, [])


class Cut(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("cells", [1, 4, 6, 17, 18, 20])
def test_what_was_cut_off_goes_on_with_the_turn_in_which_it_was(
    folder: ResultsFolder, cells: int
) -> None:
    run = made_run(pairs=PAIRS)
    first = Simulated(run)

    def cut(place: Place) -> None:
        if len(first.measured) == cells:
            raise Cut

    first.before = cut
    with pytest.raises(Cut):
        run_sweep(folder, run, first)
    assert len(folder.cells()) == cells
    assert folder.stopped() is None
    second = Simulated(run)
    run_sweep(folder, run, second)
    whole = [place.id for pair in (0, 1) for b in range(3) for place in places(run, pair, b)]
    # What is compared with each other is measured together: an unfinished turn begins anew.
    together = len(run.candidates)
    assert first.measured[: cells - cells % together] + second.measured == whole
    assert [cell.id for cell in folder.cells()] == whole
    assert second.opened == ([0, 1] if cells < 18 else [1])
    again = Simulated(run)
    run_sweep(folder, run, again)
    assert again.measured == again.opened == []


def test_a_resumed_sweep_stops_where_the_whole_one_does(tmp_path: Path) -> None:
    run = made_run(blocks=30, precision=0.02)
    whole, parts = ResultsFolder(tmp_path / "whole"), ResultsFolder(tmp_path / "parts")
    end = run_sweep(whole, run, Simulated(run, 0.01))
    first = Simulated(run, 0.01)

    def cut(place: Place) -> None:
        if place.block == 9:
            raise Cut

    first.before = cut
    with pytest.raises(Cut):
        run_sweep(parts, run, first)
    assert run_sweep(parts, run, Simulated(run, 0.01)) == end
    assert [cell.id for cell in parts.cells()] == [cell.id for cell in whole.cells()]


def test_a_pair_that_was_over_is_not_begun_again(folder: ResultsFolder) -> None:
    """Its time was over before; how much of it is left now does not matter."""
    run = made_run(pairs=PAIRS, blocks=4)
    folder.begin(run)
    before = Simulated(run)
    for place in [*places(run, 0, 0), *places(run, 0, 1), *places(run, 1, 0)]:
        folder.add(*before.measure(place))
    after = Simulated(run)
    run_sweep(folder, run, after)
    assert {name[:2] for name in after.measured} == {"p1"}


def test_the_time_left_is_bounded_by_the_budget(folder: ResultsFolder) -> None:
    run = made_run(blocks=8)
    told = Told()
    folder.begin(run)
    Sweep(folder, run, Simulated(run, took=2.0).open_pair, told, 30.0).run()
    assert told.left[0][1] == pytest.approx(30, abs=1)
    shorter = made_run(blocks=1, loads=[Load(name="C=1", kind="closed", concurrency=1)])
    other = ResultsFolder(folder.path.parent / "other")
    other.begin(shorter)
    told = Told()
    Sweep(other, shorter, Simulated(shorter, took=2.0).open_pair, told, 1e6).run()
    assert [seconds for _, seconds in told.left] == [10.0, 8.0, 6.0, 4.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_lengths_of_time_are_for_people(seconds: float, said: str) -> None:
    assert length(seconds) == said


@pytest.mark.parametrize("bar", [True, False])
def test_failures_are_told_with_and_without_a_bar(
    bar: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run()
    simulated = Simulated(run)
    simulated.failing = {Place(0, 1, 0, 1, 0).id}
    with Display(run, bar=bar, lines=True) as display:
        display.known(6)
        for place in places(run, 0, 1):
            display.cell(simulated.measure(place)[0], 6, 90.0)
        display.block("shipped", 1)
    said = capsys.readouterr()
    assert not said.out
    assert "shipped, C=1, two, block 1 failed: the server has ended\n" in said.err
    assert ("12/18 cells" in said.err) == bar
    assert ("shipped: block 1 of 2 done after 0 s, at most 90 s left\n" in said.err) == (not bar)


def test_a_cell_that_does_not_count_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run()
    (first, *_) = places(run, 0, 0)
    cell, _ = Simulated(run).measure(first)
    with Display(run, bar=False, lines=False) as display:
        display.known(0)
        display.cell(msgspec.structs.replace(cell, invalid="the clients were late"), 1, 1.0)
        display.block("shipped", 0)
    assert capsys.readouterr().err == (
        "shipped, C=1, one, block 0 does not count: the clients were late\n"
    )


def test_an_id_holds_no_name() -> None:
    assert dataclasses.astuple(Place(1, 2, 3, 4, 0)) == (1, 2, 3, 4, 0)
    assert Place(1, 2, 3, 4, 0).id == "p1-b0002-l3-c4"
