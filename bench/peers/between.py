"""Odd numbers of requests and odd lengths, beside what lies between their neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from bench.peers.summary import CellSummary, Summary
from bench.statistics import ALPHA, Ratio, paired_ratio

Round = tuple[int, int]
"""Its number, and its sitting."""

Rates = Mapping[Round, float]
"""Tokens/s by round."""


@dataclass(frozen=True, slots=True)
class Between:
    """An engine at an odd place: its tokens/s over those that lie between its neighbours' of the
    same round. ``ratio``: None with one round."""

    place: str
    engine: str
    value: float
    ratio: Ratio | None


def betweens(summary: Summary, odd: Collection[int]) -> list[Between]:
    """Of all cells whose concurrency or prompt is one of ``odd``, between the nearest others.

    Tokens/s are taken to grow as a power of the concurrency, and the time that requests take as a
    line in their prompt's length.
    """
    found = []
    for engine in summary.engines:
        for cell in summary.cells:
            if cell.concurrency in odd:
                family = [
                    other
                    for other in summary.cells
                    if (other.pair, other.workload) == (cell.pair, cell.workload)
                ]
                place = f"{cell.concurrency} requests"
                found += _between(family, cell, odd, engine, place, _concurrency, _power)
            if cell.workload.prompt in odd:
                family = [
                    other
                    for other in summary.cells
                    if (other.pair, other.workload.output, other.concurrency)
                    == (cell.pair, cell.workload.output, cell.concurrency)
                ]
                place = f"prompts of {cell.workload.prompt} tokens"
                found += _between(family, cell, odd, engine, place, _prompt, _time)
    return found


def between_table(found: Sequence[Between]) -> str:
    """Markdown: a row for each engine, a column for each place."""
    places = list(dict.fromkeys(one.place for one in found))
    texts = {(one.engine, one.place): _text(one) for one in found}
    lines = [
        f"| tokens/s ÷ what lies between the neighbours | {' | '.join(places)} |",
        "| --- |" + " --- |" * len(places),
    ]
    for engine in dict.fromkeys(one.engine for one in found):
        row = [texts.get((engine, place), "–") for place in places]
        lines.append(f"| {engine.replace(':', ', ')} | {' | '.join(row)} |")
    return "\n".join(lines)


def _text(one: Between) -> str:
    if one.ratio is None:
        return f"{one.value:.2f} (once)"
    return f"{one.value:.2f} ({one.ratio.low:.2f} to {one.ratio.high:.2f})"


def _concurrency(cell: CellSummary) -> int:
    return cell.concurrency


def _prompt(cell: CellSummary) -> int:
    return cell.workload.prompt


def _power(at: int, low: int, high: int, rates: tuple[float, float]) -> float:
    share = math.log(at / low) / math.log(high / low)
    return math.exp((1 - share) * math.log(rates[0]) + share * math.log(rates[1]))


def _time(at: int, low: int, high: int, rates: tuple[float, float]) -> float:
    share = (at - low) / (high - low)
    return 1 / ((1 - share) / rates[0] + share / rates[1])


def _between(
    family: Sequence[CellSummary],
    cell: CellSummary,
    odd: Collection[int],
    engine: str,
    place: str,
    of: Callable[[CellSummary], int],
    rule: Callable[[int, int, int, tuple[float, float]], float],
) -> list[Between]:
    """One, or none where a neighbour is missing or was measured in other rounds."""
    at = of(cell)
    known = {of(other): other for other in family if of(other) not in odd}
    low = max((value for value in known if value < at), default=None)
    high = min((value for value in known if value > at), default=None)
    if low is None or high is None:
        return []
    mine = cell.by_round(engine)
    below, above = known[low].by_round(engine), known[high].by_round(engine)
    rounds = sorted(mine.keys() & below.keys() & above.keys())
    if not rounds:
        return []
    measured = [mine[n] for n in rounds]
    expected = [rule(at, low, high, (below[n], above[n])) for n in rounds]
    if len(rounds) == 1:
        return [Between(place, engine, measured[0] / expected[0], None)]
    ratio = paired_ratio(measured, expected, ALPHA)
    return [Between(place, engine, ratio.estimate, ratio)]
