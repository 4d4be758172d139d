"""``bench.report.recommendation``: the fastest, unless a simpler one is not shown to be behind."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from made_results import FolderInMemory, Truth

from bench.report.analysis import Choice, analyse
from bench.report.recommendation import load_text, processes
from bench.results.records import Load


def choices(rates: dict[str, float], **truth: Any) -> list[Choice]:
    """What is chosen of candidates with these tokens/s, under one load unless ``truth`` says."""
    known = Truth(
        **{
            "candidates": tuple(rates),
            "concurrencies": (4,),
            "tokens": 16,
            "rate": lambda name, load: rates[name],
            **truth,
        }
    )
    (recommendation,) = analyse(known.in_memory()).recommendations
    return list(recommendation.choices)


def test_the_fastest_is_chosen() -> None:
    (found,) = choices({"unified": 300.0, "pd": 500.0, "pdv": 400.0})
    assert (found.candidate, found.fastest, found.runner_up) == ("pd", "pd", "pdv")
    assert found.shown
    assert found.ratio is not None
    assert found.ratio.estimate == pytest.approx(500 / 400, rel=0.02)
    assert found.processes == 4  # front, pools and two workers


def test_the_simplest_wins_a_tie() -> None:
    (found,) = choices({"pdv": 402.0, "pd": 401.0, "unified": 400.0}, noise=0.02)
    assert found.candidate == "unified"
    assert found.processes == 2
    assert not found.shown
    # By the number of processes, not by name or place.
    rates = {"unified": 402.0, "pd": 401.0, "pdv": 400.0}
    topologies = {"unified": "pdv", "pd": "pd", "pdv": "unified"}
    (found,) = choices(rates, candidates=topologies, noise=0.02)
    assert found.candidate == "pdv"


def test_of_two_that_are_as_simple_the_faster_one_is_chosen() -> None:
    rates = {"a": 400.0, "b": 410.0, "c": 300.0}
    (found,) = choices(rates, candidates=dict.fromkeys(rates, "unified"), noise=0.2)
    assert found.candidate == found.fastest


def test_what_failed_is_not_eligible() -> None:
    failed = {("pd", "C=4", block): "it died" for block in range(5)}
    (found,) = choices({"unified": 300.0, "pd": 500.0, "pdv": 400.0}, failed=failed)
    assert (found.candidate, found.runner_up) == ("pdv", "unified")
    everything = {(n, "C=4", b): "it died" for n in ("unified", "pd") for b in range(9)}
    (found,) = choices({"unified": 300.0, "pd": 500.0}, failed=everything, twin=False)
    assert (found.candidate, found.fastest, found.ratio, found.shown) == (None, None, None, False)
    (found,) = choices({"unified": 300.0, "pd": 500.0}, failed=failed)
    assert (found.candidate, found.runner_up, found.ratio) == ("unified", None, None)


def test_each_load_has_its_own_choice_and_sentences_name_them() -> None:
    rates = {("unified", 1): 500.0, ("unified", 8): 500.0, ("pd", 1): 300.0, ("pd", 8): 900.0}
    truth = Truth(
        candidates=("unified", "pd"),
        concurrencies=(1, 8),
        rates=(5.0,),
        tokens=16,
        rate=lambda name, load: rates[name, load.concurrency or 8],
    )
    (found,) = analyse(truth.in_memory()).recommendations
    assert [choice.candidate for choice in found.choices] == ["unified", "pd", "pd"]
    what, how_much, how_sure = found.sentences
    assert what == (
        "On this machine, with the pair shipped, run unified for 1 client and pd for 8 clients and "
        "5 requests/s."
    )
    assert "pd makes 9" in how_much or "pd makes 8" in how_much
    assert "interval" in how_much
    assert "probability of 95%" in how_sure
    assert "two equal servers differed by up to" in how_sure
    for sentence in found.sentences:
        assert sentence.endswith(".")


def test_a_tie_under_one_load_of_several_is_named() -> None:
    truth = Truth(
        candidates=("unified", "pd"),
        concurrencies=(1, 8),
        tokens=16,
        rate=lambda name, load: 900.0 if (name, load.name) == ("pd", "C=8") else 500.0,
    )
    (found,) = analyse(truth.in_memory()).recommendations
    assert found.sentences[0] == (
        "On this machine, with the pair shipped, run unified for 1 client and pd for 8 clients; "
        "for 1 client this is not shown to be faster than the next best."
    )


def test_a_tie_says_that_nothing_was_shown() -> None:
    truth = Truth(candidates=("unified", "pd"), concurrencies=(2,), tokens=16, twin=False)
    (found,) = analyse(truth.in_memory()).recommendations
    assert "run unified for 2 clients" in found.sentences[0]
    assert found.sentences[1].startswith("Nothing was shown to be ahead")
    assert "was not measured" in found.sentences[2]


def test_processes_are_counted_else_looked_up() -> None:
    truth = Truth(candidates={"x": "pdv", "y": "mine"}, twin=False, concurrencies=(1,), tokens=8)
    run = truth.run()
    cells = list(truth.cells(run))
    counted = analyse(FolderInMemory(run, cells))
    assert processes(counted.cell("shipped", "x", "C=1")) == 5
    bare = [(msgspec.structs.replace(cell, uses={}), requests) for cell, requests in cells]
    found = analyse(FolderInMemory(run, bare))
    assert processes(found.cell("shipped", "x", "C=1")) == 6  # pdv has a tokenizer besides
    assert processes(found.cell("shipped", "y", "C=1")) is None


def test_loads_in_words() -> None:
    assert load_text(Load(name="x", kind="closed", concurrency=1)) == "1 client"
    assert load_text(Load(name="x", kind="open", rate=2.5)) == "2.5 requests/s"
    assert load_text(Load(name="x", kind="trace", trace="/y/x.jsonl")) == "the trace x"
