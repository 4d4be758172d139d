"""The map of valleys: in what order its windows are, and what it says of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from bench.emulation import studies, trials
from bench.emulation.law import HostCosts, Work, predict
from bench.emulation.records import Trial, TrialFolder
from bench.emulation.report import write_report
from bench.emulation.studies import CYCLES, TOPOLOGIES, Scope
from bench.emulation.trials import Budget, Plan, whole_blocks
from bench.emulation.valley import Place, Valley, caveats, places, valleys

HOST = HostCosts(s0=1000, s1=10, h0=300, h1=4)


def scope(blocks: int) -> Scope:
    return Scope((1, 8), (0.3, 30.0), (0,), blocks, 1.0, Work(16, 128))


def window(setup: str, block: int, rate: float | None, step_ms: float = 0.3) -> Trial:
    return Trial(
        id=f"{setup}/{step_ms}/{block}",
        study="valley",
        kind="emulated",
        setup=setup,
        table="t",
        concurrency=8,
        k=4,
        block=block,
        step_ms=step_ms,
        rate=rate,
        failed=None if rate else "it ended",
    )


def found(windows: Sequence[Trial], law: float = 0.8) -> list[Place]:
    """The places, with a law that says 100 tokens/s for unified and ``law`` of it for others."""
    said = {w.id: 100.0 if w.setup == "unified" else 100 * law for w in windows}
    return places(windows, {"valley": said})


def place(ratio: float, low: float | None, high: float | None, step_ms: float = 0.3) -> Place:
    return Place("pdv", step_ms, 8, 0.8, ratio, low, high, 1 if low is None else 4)


def test_topologies_are_measured_in_turn_block_by_block() -> None:
    groups, predictions = studies.valley_study(scope(4), HOST)
    assert len(groups) == 2  # the servers of a step length run at the same time
    for group in groups:
        assert [plan.trial.block for plan in group] == sorted(6 * [0, 1, 2, 3])
        assert len({plan.trial.id for plan in group}) == len(group) == 24
        assert len({plan.setup for plan in group}) == len(TOPOLOGIES)
        firsts = set()
        for turn in zip(*[iter(group)] * 3, strict=True):
            assert {plan.setup.name for plan in turn} == set(TOPOLOGIES)
            assert len({(plan.trial.block, plan.trial.concurrency) for plan in turn}) == 1
            firsts.add(turn[0].setup.name)
        assert firsts == set(TOPOLOGIES)
        for plan in group:
            trial, setup = plan.trial, plan.setup
            assert setup.table is not None
            law = predict(setup.table, HOST, setup.where, trial.concurrency, setup.k, Work(16, 128))
            assert plan.seconds >= min(10.0, CYCLES * law.cycle_us / 1e6)
            assert predictions[trial.id] == law.rate


def test_the_last_blocks_of_all_groups_are_left_out_first() -> None:
    groups, _ = studies.valley_study(scope(4), HOST)
    whole = sum(plan.takes for group in groups for plan in group)
    starts = 2 * len(TOPOLOGIES) * trials.START_SECONDS

    def blocks(seconds: float, missing: Sequence[Sequence[Plan]] = groups) -> list[set[int]]:
        chosen = whole_blocks(missing, Budget(seconds))
        return [{plan.trial.block for plan in group} for group in chosen]

    assert blocks(starts + whole + 1) == [{0, 1, 2, 3}] * 2
    assert blocks(starts + 0.76 * whole) == [{0, 1, 2}] * 2
    assert blocks(starts + 0.3 * whole) == [{0}] * 2
    assert blocks(0) == [{0}] * 2  # what then does not fit is found group by group
    rest = [[plan for plan in group if plan.trial.block > 1] for group in groups]
    assert blocks(starts + 0.3 * whole, rest) == [{2}] * 2


def test_a_run_that_was_cut_off_goes_on_with_the_blocks_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said, ran = TrialFolder(tmp_path), list[str](), list[str]()
    folder.begin({}, {})
    groups, _ = studies.valley_study(scope(2), HOST)
    for plan in itertools.chain(groups[0], groups[1][:-1]):
        folder.add(msgspec.structs.replace(plan.trial, rate=1.0))
    monkeypatch.setattr(trials, "_run_servers", lambda _, plans, *rest: ran.extend(plans))
    nothing: object = None
    assert trials.run_trials(folder, groups, nothing, Budget(1e6), tmp_path, said.append) == 0  # type: ignore[arg-type]
    assert ran == groups[1][-3:]  # all servers of the turn again: other hours are not compared
    assert "valley: 3 windows, about 0.7 minutes" in said[0]
    for plan in groups[1][-3:]:
        folder.add(msgspec.structs.replace(plan.trial, rate=2.0))
    rates = {trial.id: (trial.rate, trial.sitting) for trial in folder.trials()}
    assert [rates[plan.trial.id] for plan in groups[1][-4:]] == [(1.0, 0)] + 3 * [(2.0, 0)]
    folder.begin({}, {})
    ran.clear()
    folder.add(msgspec.structs.replace(groups[0][0].trial, rate=3.0))
    assert trials.run_trials(folder, groups, nothing, Budget(1e6), tmp_path, said.append) == 0  # type: ignore[arg-type]
    assert ran == groups[0][:3]  # one of these is of another sitting


def test_ratios_are_of_windows_of_the_same_block() -> None:
    """Slow minutes that both have in common do not widen the interval."""
    minutes = [1.0, 2.0, 0.5, 4.0]
    share = [0.70, 0.71, 0.69, 0.70]
    (one,) = found(
        [window("unified", b, 100 * m) for b, m in enumerate(minutes)]
        + [window("pdv", b, 100 * minutes[b] * share[b]) for b in range(4)]
    )
    assert one.low is not None
    assert one.high is not None
    assert 0.68 < one.low < one.found < one.high < 0.72
    assert one.found == pytest.approx(0.70, abs=0.001)
    assert (one.blocks, one.verdict) == (4, "loss")
    assert one.residual == pytest.approx(0.70 / 0.8 - 1, abs=0.002)


def test_the_intervals_of_all_places_hold_at_once() -> None:
    """The more places there are, the wider each interval is."""
    share = [0.70, 0.71, 0.69, 0.70]
    few = [window("unified", b, 100) for b in range(4)]
    few += [window("pdv", b, 100 * share[b]) for b in range(4)]
    many = few + [
        window(setup, b, 100 * (1.0 if setup == "unified" else share[b]), step)
        for step in (1.0, 3.0, 10.0)
        for setup in ("unified", "pdv")
        for b in range(4)
    ]
    alone, together = found(few)[0], found(many)[0]
    assert together.found == alone.found
    assert together.low is not None
    assert alone.low is not None
    assert together.low < alone.low


def test_windows_of_different_sittings_are_not_compared() -> None:
    later = [msgspec.structs.replace(window("pdv", b, 50), sitting=1) for b in (1, 2)]
    windows = [window("unified", b, 100) for b in range(3)] + [window("pdv", 0, 90), *later]
    (one,) = found(windows)
    assert (one.blocks, one.found) == (1, pytest.approx(0.9))


def test_a_block_without_both_windows_does_not_count() -> None:
    windows = [window("unified", 0, 100), window("unified", 1, None), window("unified", 2, 100)]
    windows += [window("pdv", 0, 90), window("pdv", 1, 10), window("pdv", 2, 90)]
    (one,) = found(windows)
    assert (one.blocks, one.found) == (2, pytest.approx(0.9))
    (single,) = found(windows[:2] + windows[3:5])
    assert (single.blocks, single.low, single.verdict) == (1, None, "one window")
    assert found([window("pdv", 0, 90)]) == []


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.7, 0.9, "loss"), (0.7, 1.0, "not shown"), (0.9, 1.1, "not shown"), (1.01, 1.1, "gain")],
)
def test_only_an_interval_without_1_shows_anything(low: float, high: float, verdict: str) -> None:
    assert place((low + high) / 2, low, high).verdict == verdict


def test_the_deepest_loss_is_one_that_is_shown() -> None:
    shown, noise = place(0.8, 0.75, 0.85, 1.0), place(0.6, 0.3, 1.2)
    valley = Valley("pdv", [shown, noise, place(1.2, 1.1, 1.3, 3.0)])
    assert valley.found is shown
    assert valley.predicted is shown  # the law says the same of all: the first
    assert "A loss is shown at 1 of 3 places (up to steps of 1 ms), a gain at 1, neither at 1." in (
        valley.words
    )
    assert "20% (15% to 25%) of unified's rate" in valley.title
    nothing = Valley("pdv", [noise])
    assert "no loss of pdv is shown at 1 places" in nothing.title
    assert "A loss is shown at 0 of 1 places" in nothing.words
    assert "so no difference is shown there" in nothing.words


def test_one_window_each_has_no_intervals_and_shows_nothing() -> None:
    each = found([window("unified", 0, 100), window("pdv", 0, 50)])
    (valley,) = valleys(each)
    assert valley.of("loss") == []
    assert "one window each, so nothing is shown" in valley.title
    assert "there are no intervals" in caveats(each)[0]


def test_the_page_has_an_interval_for_each_place(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    folder.begin({}, {})
    said = {}
    for block, step in itertools.product(range(3), (0.3, 3.0)):
        for setup, share in (("unified", 1.0), ("pdv", 0.7 if step < 1 else 1.0)):
            trial = window(setup, block, 100 * share * (1 + 0.01 * block * (setup == "pdv")), step)
            folder.add(trial)
            said[trial.id] = 100.0 if setup == "unified" else 80.0
    folder.predict("valley", said)
    text = write_report(folder).read_text(encoding="utf-8")
    assert "| pdv | 0.3 | 8 | 3 | 0.800 | 0.707 (0.682–0.733) | loss | -11.6% |" in text
    assert "| pdv | 3 | 8 | 3 | 0.800 | 1.010 (0.975–1.046) | not shown | +26.2% |" in text
    assert "With fewer than 8 windows" in text
    assert "Found there: 29% fewer (interval 0.68 to 0.73 of unified's rate)." in text
    assert (tmp_path / "emulated_valley_pdv.csv").read_text().count("loss") == 1
