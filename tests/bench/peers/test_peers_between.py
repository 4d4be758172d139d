"""Odd concurrencies and lengths beside their neighbours."""

from __future__ import annotations

import dataclasses

import pytest
from made_peers import record, summary
from msgspec.structs import replace

from bench.peers.between import between_table, betweens
from bench.peers.records import Workload
from bench.peers.summary import Summary, summarise

ENGINE = "pdv_mp:plain"


def measured(rates: dict[tuple[int, int], float], rounds: int = 3) -> Summary:
    """``rates``: by prompt and concurrency; even rounds are twice as quick."""
    made = summary()
    places = [place for place in rates for _ in range(rounds)]
    cells = [
        replace(
            record(ENGINE, concurrency, number % rounds, rates[prompt, concurrency]),
            workload=f"{prompt}+64",
        )
        for number, (prompt, concurrency) in enumerate(places)
    ]
    cells = [replace(c, seconds=c.seconds * (1 if c.round % 2 else 0.5)) for c in cells]
    prompts = sorted({prompt for prompt, _ in rates})
    run = replace(
        made.run,
        workloads=[Workload(prompt, 64) for prompt in prompts],
        concurrencies=sorted({concurrency for _, concurrency in rates}),
        engines=[ENGINE],
    )
    return summarise(run, cells, [])


def test_a_power_of_the_concurrency_is_no_odd_place() -> None:
    found = betweens(measured({(128, n): 10.0 * n**0.7 for n in (4, 5, 8, 13, 16)}), (5, 13))
    assert [(one.place, one.engine) for one in found] == [
        ("5 requests", ENGINE),
        ("13 requests", ENGINE),
    ]
    for one in found:
        assert one.value == pytest.approx(1)
        assert one.ratio is not None
        assert one.ratio.low == pytest.approx(1)
    assert between_table(found).splitlines()[2] == (
        "| pdv_mp, plain | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) |"
    )


def test_what_is_slower_than_its_neighbours_is_seen() -> None:
    slow = {(128, 4): 10.0, (128, 5): 8.0, (128, 8): 10.0, (128, 13): 9.0}
    (one,) = betweens(measured(slow), (5, 13))  # behind 13 there is nothing
    assert one.value == pytest.approx(0.8)
    (once,) = betweens(measured(slow, rounds=1), (5,))
    assert (once.value, once.ratio) == (pytest.approx(0.8), None)
    assert "0.80 (once)" in between_table([once])


def test_the_time_of_requests_is_a_line_in_their_prompts() -> None:
    seconds = {length: 1 + length / 100 for length in (64, 97, 128)}
    found = betweens(measured({(n, 8): 64 / seconds[n] for n in seconds}), (97,))
    (one,) = found
    assert one.place == "prompts of 97 tokens"
    assert one.value == pytest.approx(1)


def test_neighbours_of_other_rounds_count_for_nothing() -> None:
    made = measured({(128, 4): 10.0, (128, 5): 10.0, (128, 8): 10.0}, rounds=1)
    cells = [
        dataclasses.replace(
            cell, records=tuple(replace(each, sitting=cell.concurrency) for each in cell.records)
        )
        for cell in made.cells
    ]
    assert betweens(dataclasses.replace(made, cells=tuple(cells)), (5,)) == []
