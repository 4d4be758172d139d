"""By how much a choice falls short of the best that was measured.

Regret is 1 - rate of what was chosen / rate of the best candidate, at each load of a measured run.
The best is known after the fact only, and noise makes it look better than it is, so a small regret
is none; ``shown`` says whether the best was ahead of the choice by the run's own intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.advice.rules import RULES, VerifierSize
from bench.report.analysis import Analysis, CellSummary
from bench.report.summaries import NOT_COMPARED
from bench.roofline.recorded import recorded_in

Chosen = Mapping[tuple[str, int], str]
"""The candidate that somebody chooses, by pair and concurrency."""


@dataclass(frozen=True, slots=True)
class Regret:
    """One choice. ``shown``: whether the best was ahead of it, None where they were not
    compared."""

    who: str
    pair: str
    concurrency: int
    chosen: str
    best: str
    regret: float
    shown: bool | None


def regrets(analysis: Analysis, who: str, chosen: Chosen) -> list[Regret]:
    """Of the choices for closed loops whose candidate was measured."""
    found = []
    for (pair, concurrency), name in chosen.items():
        rates = _rates(analysis, pair, concurrency)
        if name not in rates:
            continue
        best = max(rates, key=lambda candidate: rates[candidate])
        shown = None if best == name else _shown(analysis, pair, concurrency, best, name)
        found.append(
            Regret(
                who,
                pair,
                concurrency,
                name,
                best,
                1 - rates[name] / rates[best],
                False if best == name else shown,
            )
        )
    return found


def rule_regrets(analysis: Analysis, sizes: Mapping[str, VerifierSize]) -> list[Regret]:
    """Of the source documents' rules; ``sizes``: of the verifiers, by pair. Pairs of no known size
    are left out."""
    found = []
    for who, rule in RULES.items():
        chosen = {
            (pair.name, concurrency): rule(concurrency, sizes[pair.name])
            for pair in analysis.run.pairs
            if pair.name in sizes
            for concurrency in concurrencies(analysis)
        }
        found += regrets(analysis, who, chosen)
    return found


def verifier_sizes(analysis: Analysis) -> dict[str, VerifierSize]:
    """Of the verifiers, by pair, where the run has kept the models' shapes; the input embedding is
    counted as one of its own."""
    recorded = recorded_in(analysis.run.environment)
    if recorded is None:
        return {}
    found = {}
    for name, costs in recorded.pairs.items():
        model = costs.verifier
        weights = model.layer_weights + 2 * model.head_weights
        billions = weights / 1e9
        named = float(round(billions)) if billions >= 1 else billions
        found[name] = VerifierSize(weights * model.bytes_per_number / 1e9, named)
    return found


def concurrencies(analysis: Analysis) -> list[int]:
    """Of the closed loops."""
    return [load.concurrency for load in analysis.run.loads if load.concurrency is not None]


def table(found: list[Regret]) -> str:
    """A Markdown table."""
    lines = ["| who | pair | C | chosen | best | regret | shown |", "|" + " --- |" * 7]
    for item in found:
        shown = {True: "yes", False: "no", None: "not compared"}[item.shown]
        lines.append(
            f"| {item.who} | {item.pair} | {item.concurrency} | {item.chosen} | {item.best} | "
            f"{item.regret:.1%} | {shown} |"
        )
    return "\n".join(lines)


def _rates(analysis: Analysis, pair: str, concurrency: int) -> dict[str, float]:
    return {
        cell.candidate: cell.throughput.value
        for cell in analysis.cells
        if _is_at(cell, pair, concurrency) and cell.throughput is not None and cell.twin_of is None
    }


def _is_at(cell: CellSummary, pair: str, concurrency: int) -> bool:
    return cell.pair == pair and cell.shape.concurrency == concurrency


def _shown(analysis: Analysis, pair: str, concurrency: int, best: str, chosen: str) -> bool | None:
    loads = {load.name for load in analysis.run.loads if load.concurrency == concurrency}
    for item in analysis.comparisons:
        if item.pair == pair and item.load in loads and item.ratio is not None:
            sides = (item.candidate, item.reference)
            if sides in ((best, chosen), (chosen, best)):
                wanted = "ahead" if sides[0] == best else "behind"
                return None if item.verdict in NOT_COMPARED else item.verdict == wanted
    return None
