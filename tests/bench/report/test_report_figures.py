"""``bench.report.figures``: titles follow from the data, looks from the order of candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_legacy import made_facts, write_legacy
from made_results import FolderInMemory, Truth

from bench.legacy.results import derive
from bench.report.analysis import Analysis, analyse
from bench.report.figures import (
    acceptance,
    findings,
    heatmap,
    latency,
    legacy,
    orchestration,
    pareto,
    throughput,
    token_time,
    utilisation,
)
from bench.report.figures.every import draw_all
from bench.report.figures.labels import Box, free_place, spread
from bench.report.figures.style import looks, settings
from bench.report.figures.view import View, shown_loads
from bench.report.page import page, render
from bench.report.page_text import cell_text, number
from bench.results.records import Candidate, Load
from bench.results.store import ResultsFolder

A, B = "pd", "pdv"


def rate(candidate: str, load: Load) -> float:
    """pd leads with few clients, pdv with many, unified never."""
    clients = load.concurrency or 8
    ahead = clients <= 8 if candidate == A else clients > 8
    return {"unified": 400.0, A: 700.0 if ahead else 600.0, B: 700.0 if ahead else 500.0}[candidate]


def share(candidate: str, load: Load) -> float:
    return {"unified": 0.05, A: 0.1, B: 0.2}[candidate]


TRUTH = Truth(rate=rate, share=share, rates=(5.0,), tokens=24, block_noise=0.02)


def exchanged_names(text: str) -> str:
    """With each of the two names where the other was."""
    marked = text.replace(B, "\0")
    return marked.replace(A, B).replace("\0", A)


def exchanged(truth: Truth) -> Analysis:
    """The same raw data, with the two candidates' cells under each other's names."""
    run = truth.run()
    names = {A: B, B: A}
    cells = [
        (
            msgspec.structs.replace(cell, candidate=names.get(cell.candidate, cell.candidate)),
            requests,
        )
        for cell, requests in truth.cells(run)
    ]
    return analyse(FolderInMemory(run, cells, truth.end(run)))


TITLES: Sequence[Callable[[View], str]] = (
    findings.throughput,
    lambda view: findings.latency(view, "shipped"),
    lambda view: utilisation.finding(view, False),
    lambda view: acceptance.finding(view, "shipped"),
    heatmap.finding,
    token_time.finding,
    lambda view: orchestration.finding(view, "shipped"),
    lambda view: pareto.finding(view, "shipped"),
)


def test_exchanging_two_names_exchanges_every_title_and_the_recommendation() -> None:
    before, after = analyse(TRUTH.in_memory()), exchanged(TRUTH)
    titles = [finding(View(before)) for finding in TITLES]
    assert f"{A} at C = 1 and 8" in titles[0]
    assert f"{B} at C = 32" in titles[0]
    assert titles[6].endswith(f"5.0% (unified, C = 1) to 20.0% ({B}, C = 1) of a request's time")
    assert [finding(View(after)) for finding in TITLES] == [exchanged_names(t) for t in titles]
    for one, other in zip(before.recommendations, after.recommendations, strict=True):
        assert [exchanged_names(text) for text in one.sentences] == list(other.sentences)


def test_titles_name_what_failed_and_what_is_open() -> None:
    truth = Truth(
        concurrencies=(1, 2, 4),
        tokens=16,
        rate=lambda name, load: 900 if (name, load.concurrency) == ("pd", 1) else 500,
        failed={("pdv", "C=4", block): "it died" for block in range(9)},
    )
    title = findings.throughput(View(analyse(truth.in_memory())))
    assert title.startswith(
        "Most tokens/s: pd at C = 1, no leader shown at C = 2 and 4, pdv failed"
    )


def test_equal_servers_have_no_leader() -> None:
    view = View(analyse(Truth(concurrencies=(1, 8), tokens=16).in_memory()))
    assert findings.throughput(view) == "Nobody is shown to have more tokens/s than all others"
    assert heatmap.finding(view).startswith("None of 6 comparisons")


def test_pairs_that_differ_are_named() -> None:
    said = {"one": "yes", "two": "no"}.__getitem__
    view = View(analyse(Truth(pairs=("one", "two"), concurrencies=(1,), blocks=1).in_memory()))
    assert findings.by_pair(view, said) == "With one, yes; with two, no"
    assert findings.by_pair(view, lambda pair: "the same") == "The same"


def test_a_gpu_is_named_where_there_is_one() -> None:
    truth = Truth(gpu=True, concurrencies=(1, 8), blocks=2, tokens=16)
    with settings():
        picture = utilisation.draw(View(analyse(truth.in_memory())))
    assert picture.title == "The GPU is busy 50% of the time, in every cell"
    assert "GPU utilisation" in picture.alt


def test_legacy_titles_follow_the_names(tmp_path: Path) -> None:
    titles = []
    for names in ((A, B), (B, A)):
        write_legacy(tmp_path / names[0], facts=made_facts("shipped", *names))
        titles.append(legacy.finding(derive(ResultsFolder(tmp_path / names[0] / "legacy"))))
    assert titles[1] == exchanged_names(titles[0])
    assert f"{B} with bounded admission has" in titles[0]


def test_without_closed_loops_there_is_no_axis_of_concurrency(tmp_path: Path) -> None:
    truth = Truth(concurrencies=(), rates=(3.0, 9.0), blocks=8, tokens=16)
    analysis = analyse(truth.in_memory())
    drawings = draw_all(analysis, None, tmp_path)
    assert set(drawings) == {"improvement_heatmap", "token_time"}
    assert "takes the largest part of a token's time" in drawings["token_time"].picture.title
    text = render(page(analysis, drawings, None, [], tmp_path))
    assert "Left out: throughput, latency, use of gpu and processor, acceptance" in text
    assert "Loads that are not closed loops" in text


def test_nothing_that_counts_can_still_be_drawn() -> None:
    failed = {
        (name, load, block): "it died"
        for name in ("unified", "pd", "unified (again)")
        for load in ("C=1", "C=8")
        for block in range(3)
    }
    truth = Truth(candidates=("unified", "pd"), concurrencies=(1, 8), blocks=2, failed=failed)
    view = View(analyse(truth.in_memory()))
    with settings():
        drawn = [part.draw(view) for part in (throughput, latency, utilisation, acceptance, pareto)]
        assert heatmap.draw(view).title == (
            "Nothing to compare: blocks of all 2 comparisons of throughput failed"
        )
        assert token_time.draw(view) is None
        assert orchestration.draw(view) is None
    assert drawn[0].title.endswith(
        "unified failed at every concurrency, pd failed at every concurrency"
    )


def test_looks_go_by_order_and_twins_look_alike() -> None:
    def candidates(*names: str) -> list[Candidate]:
        found = [Candidate(name=name, topology=name) for name in names]
        return [*found, Candidate(name="again", topology=names[0], twin_of=names[0])]

    one, other = looks(candidates("x", "y", "z")), looks(candidates("z", "y", "x"))
    assert one["x"] == other["z"]
    assert one["again"] == one["x"]
    own = [one[name] for name in "xyz"]
    for field in ("colour", "marker", "dash"):
        assert len({getattr(look, field) for look in own}) == 3


@given(
    wanted=st.lists(st.floats(0, 1), min_size=1, max_size=7),
    gap=st.floats(0.01, 0.14),
)
def test_names_are_spread_in_their_order(wanted: list[float], gap: float) -> None:
    found = spread(wanted, gap, 0.0, 1.0)
    ordered = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    for before, after in pairwise(ordered):
        assert found[after] - found[before] >= gap - 1e-9
    assert min(found) >= -1e-9
    assert max(found) <= 1 + 1e-9
    if all(b - a >= gap for a, b in pairwise(sorted(wanted))):
        assert found == pytest.approx(wanted, abs=1e-9)


def test_a_label_takes_a_free_place_or_none() -> None:
    inside = Box(0, 0, 100, 100)
    taken = [Box(50, 50, 100, 100)]
    box = free_place(50, 50, 20, 10, 5, taken, inside)
    assert box is not None
    assert inside.holds(box)
    assert not box.overlaps(taken[0])
    assert free_place(50, 50, 20, 10, 5, [inside], inside) is None


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ([1, 8, 32, 64], "every concurrency"),
        ([1], "C = 1"),
        ([1, 8], "C = 1 and 8"),
        ([8, 32, 64], "C = 8 to 64"),
        ([1, 32, 64], "C = 1, 32 and 64"),
    ],
)
def test_concurrencies_are_said_shortly(chosen: list[int], said: str) -> None:
    assert findings.span(chosen, [1, 8, 32, 64]) == said


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0123, "0.0123"), (0.5, "0.500"), (4.567, "4.57"), (1234.5, "1\u202f234")],
)
def test_numbers_have_no_powers_of_ten(value: float, text: str) -> None:
    assert number(value) == text


def test_cells_of_tables() -> None:
    assert [cell_text(v) for v in (None, "", True, 7, "text")] == ["–", "–", "yes", "7", "text"]


def test_few_loads_stand_for_many() -> None:
    loads = [Load(name=str(n), kind="closed", concurrency=n) for n in range(1, 15)]
    assert [load.concurrency for load in shown_loads(loads, 4)] == [1, 5, 10, 14]
    assert shown_loads(loads[:3], 4) == tuple(loads[:3])
