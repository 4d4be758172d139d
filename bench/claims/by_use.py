"""Claims on utilisation, acceptance and options, held against a sweep's cells."""

from __future__ import annotations

import statistics

from bench.claims.evidence import Evidence, measured_throughput
from bench.claims.records import Acceptance, OptionEffect, Utilisation
from bench.claims.verdicts import (
    Finding,
    Judgement,
    at,
    overlaps,
    ratio_or_reason,
    said_range,
    untestable,
)


def utilisation(judge: Utilisation, evidence: Evidence) -> list[Finding]:
    """The mean of the first GPU's utilisation over the loads."""
    lacking = evidence.lacks(*judge.shares)
    if lacking:
        return [lacking]
    found = []
    for pair in evidence.pairs(judge.pair):
        for name, claimed in judge.shares.items():
            cells = [
                cell
                for cell in evidence.cells(pair, name)
                if not judge.concurrency or cell.shape.concurrency in judge.concurrency
            ]
            seen = [cell.gpus[0].utilisation for cell in cells if cell.gpus]
            if not seen:
                why = "no GPU" if cells else evidence.not_measured(judge.concurrency)
                found.append(untestable(why))
                continue
            value = statistics.fmean(seen)
            judgement: Judgement = (
                "reproduced" if overlaps(value, value, claimed) else "not reproduced"
            )
            text = f"{name} {value:.0%} on average over {len(seen)} loads"
            found.append(at(Finding(judgement, text, value=value), pair))
    return found


def acceptance(judge: Acceptance, evidence: Evidence) -> list[Finding]:
    """The acceptance rate of each candidate under each load."""
    lacking = evidence.lacks(*judge.candidates)
    if lacking:
        return [lacking]
    found = []
    for pair in evidence.pairs(judge.pair):
        for name in judge.candidates:
            rates = [
                cell.speculation.acceptance_rate
                for cell in evidence.cells(pair, name)
                if cell.speculation.acceptance_rate is not None
            ]
            if not rates:
                found.append(untestable(f"{name} drafted nothing"))
                continue
            low, high = min(r.value for r in rates), max(r.value for r in rates)
            inside = overlaps(low, low, judge.rate) and overlaps(high, high, judge.rate)
            text = f"{name} accepts {low:.1%} to {high:.1%} of its drafts"
            judgement: Judgement = "reproduced" if inside else "not reproduced"
            mean = statistics.fmean(r.value for r in rates)
            found.append(at(Finding(judgement, text, value=mean, low=low, high=high), pair))
    return found


def option_effect(judge: OptionEffect, evidence: Evidence) -> list[Finding]:
    """Candidates that differ in one option only, the one with the best value against the other."""
    flag = "--" + judge.option.replace("_", "-")
    found = []
    for best, other in evidence.only_differing(judge.option):
        if evidence.options(best).get(judge.option) != judge.best:
            continue
        for load, comparison in evidence.comparisons(
            None, judge.concurrency, best.name, other.name
        ):
            finding = ratio_or_reason(measured_throughput(comparison), (1.0, None))
            where = f"{load.name}, {best.name} over {other.name}"
            found.append(at(finding, comparison.pair, where))
    if found:
        return found
    levels = said_range((float(min(judge.concurrency)), float(max(judge.concurrency))))
    return [
        untestable(
            f"no candidates of the run at C = {levels} differ in {flag} only, one of them with "
            f"{judge.best}"
        )
    ]
