"""What is said of records whose truth is known."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from made_peers import RATES, ROUNDS, record, summary
from msgspec.structs import replace

from bench.peers.figure import draw
from bench.peers.records import RatesRecord
from bench.peers.summary import FIXED, measured_acceptance, summarise
from bench.peers.tables import page
from bench.roofline.bounds import expected_tokens


def test_ratios_are_of_rounds() -> None:
    (cell, _) = summary().cells
    assert cell.best_of_ours == "pdv_mp:auto"
    assert cell.best_of_theirs == "other:draft"
    versus = cell.versus(cell.best_of_ours, cell.best_of_theirs)
    assert versus is not None
    assert versus.ratio is not None
    assert versus.ratio.blocks == ROUNDS
    # What slows all engines of a round leaves the ratio as it is.
    assert (versus.ratio.low, versus.ratio.high) == pytest.approx((1.25, 1.25))
    once = cell.versus(cell.best_of_ours, "third:plain")
    assert once is not None
    assert (once.value, once.ratio) == (pytest.approx(10), None)


def test_rounds_of_different_sittings_are_not_compared() -> None:
    found = summary()
    cells = [record for cell in found.cells for record in cell.records]
    later = [
        replace(record, sitting=2) if record.engine == "other:draft" and record.round else record
        for record in cells
    ]
    (cell, _) = summarise(found.run, later, []).cells
    versus = cell.versus("pdv_mp:auto", "other:draft")
    assert versus is not None
    assert (versus.value, versus.ratio) == (pytest.approx(1.25), None)


def test_decode_rates_leave_prefill_and_first_tokens_out() -> None:
    (cell, _) = summary().cells
    assert cell.decode_rate("pdv_mp:auto") == pytest.approx(63 / 0.48)


def test_acceptance_follows_from_our_fixed_length() -> None:
    (cell, _) = summary().cells
    assert measured_acceptance(cell.records) == pytest.approx(0.75, abs=1e-3)
    assert cell.bound is not None
    assert cell.bound.acceptance == pytest.approx(0.75, abs=1e-3)
    # Weights once for about 4 tokens: 434 MB at 20 GB/s, and the prompt's arithmetic.
    assert 100 < cell.bound.total < cell.bound.decode < 200


def test_each_concurrency_has_the_acceptance_of_its_own_prompts() -> None:
    found = summary()
    hard = {"cycles": 10_000, "drafted": 40_000, "accepted": 10_000}
    cells = [
        msgspec.structs.replace(each, speculation=hard if each.engine == FIXED else None)
        if each.concurrency == 8
        else each
        for cell in found.cells
        for each in cell.records
    ]
    few, many = summarise(found.run, cells, []).cells
    assert few.bound is not None
    assert many.bound is not None
    assert few.bound.acceptance == pytest.approx(0.75, abs=1e-3)
    assert expected_tokens(many.bound.acceptance, 4) == pytest.approx(2.0, abs=1e-3)
    plain = [each for each in cells if each.concurrency == 1 or each.engine != FIXED]
    (_, without) = summarise(found.run, plain, []).cells
    assert without.bound is not None
    assert without.bound.acceptance == pytest.approx(0.75, abs=1e-3)


def test_the_tables() -> None:
    text = page(summary())
    assert "| pdv_mp, auto | 83.7 (60.3 to 116) | 237 (171 to 328) |" in text
    assert "| third, plain | 10.0 (once) | 28.3 (once) |" in text
    assert "| best of ours ÷ best of all peers | 1.25 (1.25 to 1.25): auto ÷ other, draft |" in text
    assert "| ours, plain ÷ best plain peer | 1.25 (1.25 to 1.25): plain ÷ other, plain |" in text
    assert "| ours, auto ÷ ours, plain | 2.00 (2.00 to 2.00) |" in text
    assert "| other, plain | 1.0 | 64 | 100.0% | 8 | 0.01 |" in text
    assert "- absent, plain (a pair): not installed" in text
    assert "at acceptance 0.75)" in text


def test_both_shares_of_the_bound_are_of_the_same_mode() -> None:
    """One that was quick once is in neither, nor are n-grams, of which the bound is not."""
    found = summary()
    cells = [each for cell in found.cells for each in cell.records]
    cells.append(record("pdv_mp:second", 1, 0, 300.0))
    cells += [
        msgspec.structs.replace(each, engine="pdv_mp:ngram", seconds=each.seconds / 9)
        for each in cells
        if each.engine == "pdv_mp:auto"
    ]
    again = summarise(found.run, cells, [])
    (cell, _) = again.cells
    assert cell.bound is not None
    assert cell.best_of_ours == "pdv_mp:ngram"
    end_to_end, decoding = cell.share(cell.best_bounded), cell.decode_share(cell.best_bounded)
    assert end_to_end is not None
    assert decoding is not None
    assert end_to_end.value == pytest.approx(83.7 / cell.bound.total, rel=1e-3)
    assert decoding.value == pytest.approx(63 / 0.48 / cell.bound.decode)
    rows = [line for line in page(again).splitlines() if "best of ours but n-gram ÷" in line]
    low, high = end_to_end.low, end_to_end.high
    assert f"| {end_to_end.value:.2f} ({low:.2f} to {high:.2f}) |" in rows[0]
    assert f"| {decoding.value:.2f} (once) |" in rows[1]


def test_a_turn_is_compared_with_what_the_machine_reached_around_it() -> None:
    """Where all engines were slower because the machine was, the share of the bound stays."""
    found = summary()
    run = msgspec.structs.replace(found.run, rates=RatesRecord(2, 1e15, 1e15, 1e20))
    cells = [each for cell in found.cells for each in cell.records]
    slow = RatesRecord(2, 0.7 * 20e9, 0.7 * 15e9, 0.7 * 180e9)
    at_the_time = [
        replace(each, rates=slow if each.round % 2 else RatesRecord(2, 20e9, 15e9, 180e9))
        for each in cells
    ]
    (cell, many) = summarise(run, at_the_time, []).cells
    share = cell.share("pdv_mp:auto")
    assert share is not None
    assert (share.low, share.high) == pytest.approx((share.value, share.value))
    (before, _) = found.cells
    assert before.bound is not None
    assert share.value == pytest.approx(100 / before.bound.total)
    assert cell.bound is not None
    assert cell.bound.total == pytest.approx(before.bound.total * 0.7**0.5)
    assert many.share("nobody") is None
    text = page(summarise(run, at_the_time, []))
    assert "it read or copied 20 (14 to 20) GB/s and computed 180 (126 to 180) GFLOP/s" in text


def test_a_round_has_the_acceptance_of_its_own_prompts() -> None:
    found = summary()
    hard = {"cycles": 10_000, "drafted": 40_000, "accepted": 10_000}
    cells = [
        replace(each, speculation=hard if each.engine == FIXED and each.round == 2 else None)
        if each.round in (2, 3)
        else each
        for cell in found.cells
        for each in cell.records
    ]
    (cell, _) = summarise(found.run, cells, []).cells
    by_round = {r.round: b for r, b in zip(cell.records, cell.bounds, strict=True) if b is not None}
    assert by_round[0].acceptance == pytest.approx(0.75, abs=1e-3)
    assert expected_tokens(by_round[2].acceptance, 4) == pytest.approx(2.0, abs=1e-3)
    # One that says nothing has what all rounds together have.
    assert by_round[2].acceptance < by_round[3].acceptance < by_round[0].acceptance


def test_without_rates_there_is_no_bound() -> None:
    found = summary(with_machine=False)
    assert {cell.bound for cell in found.cells} == {None}
    text = page(found)
    assert "The machine's rates were not measured" in text
    assert "÷ bound" not in text


def test_the_figure(tmp_path: Path) -> None:
    drawn = draw(summary(), tmp_path)
    assert "1.25 to 1.25 × the best peer's tokens/s: ahead in 2" in drawn.picture.title
    assert len((tmp_path / "peers.csv").read_text().splitlines()) == 1 + 2 * len(RATES)
    assert (tmp_path / "peers.png").stat().st_size > 10_000
