"""Every claim with its verdict: :func:`judge`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.claims import by_cells, by_facts, by_use
from bench.claims.evidence import Evidence
from bench.claims.reading import read_claims
from bench.claims.records import (
    Acceptance,
    Audit,
    AverageRatio,
    Claim,
    Claims,
    ConcurrentRate,
    ConcurrentServed,
    ConcurrentTarget,
    ConcurrentTime,
    LatencyRatio,
    Maximum,
    OptionEffect,
    Quotient,
    Scaling,
    ScenarioCount,
    SizeRatio,
    ThroughputRatio,
    Utilisation,
    ValleyClaim,
)
from bench.claims.verdicts import Finding, Verdict, combine, figure
from bench.legacy.results import Interval, Legacy
from bench.legacy.tables import said_ratio
from bench.report.analysis import Analysis

LARGE, OF_CLAIM = 5.0, 1 / 3
"""A claim is called an artefact of the legacy metric if that shows at least this ratio, and this
share of the claimed one, ..."""

NO_GAIN = 1.5
"""... and all tokens of the same requests show no more than this."""

_BY_KIND: dict[type, Callable[[Any, Evidence], list[Finding]]] = {
    ThroughputRatio: by_cells.throughput_ratio,
    LatencyRatio: by_cells.latency_ratio,
    AverageRatio: by_cells.average_ratio,
    Maximum: by_cells.maximum,
    Scaling: by_cells.scaling,
    ValleyClaim: by_cells.valley,
    ScenarioCount: by_cells.scenario_count,
    Utilisation: by_use.utilisation,
    Acceptance: by_use.acceptance,
    OptionEffect: by_use.option_effect,
    SizeRatio: by_facts.size_ratio,
    Quotient: by_facts.quotient,
    Audit: by_facts.audit,
    ConcurrentTime: by_facts.concurrent_time,
    ConcurrentTarget: by_facts.concurrent_target,
    ConcurrentRate: by_facts.concurrent_rate,
    ConcurrentServed: by_facts.concurrent_served,
}
_CONCURRENT = (ConcurrentTarget, ConcurrentRate, ConcurrentServed)


def judge(analysis: Analysis, folder: Path, claims: Claims | None = None) -> list[Verdict]:
    """A verdict for each claim, in their order. ``folder``: the results, which may also hold a
    legacy window and a concurrent test.

    Raises ClaimsError if the list of claims cannot be read, ResultsError if what is derived in the
    folder cannot.
    """
    claims = read_claims() if claims is None else claims
    evidence = Evidence.of(claims, analysis, folder)
    return [_judge(claim, evidence) for claim in claims.claims]


def _judge(claim: Claim, evidence: Evidence) -> Verdict:
    findings = _BY_KIND[type(claim.judge)](claim.judge, evidence)
    judgement, text = combine(findings)
    tested = [one for one in findings if one.judgement != "not testable here"]
    pair = getattr(claim.judge, "pair", None)
    other = any(evidence.is_other(one.pair, pair) for one in tested)
    other = other or (isinstance(claim.judge, _CONCURRENT) and bool(tested))
    if claim.censored and judgement != "reproduced":
        manufactured = _manufactured(claim, evidence)
        if manufactured is not None:
            other = evidence.is_other(manufactured.facts.pair, pair)
            return Verdict(
                claim, "artefact", other, text, tuple(findings), _said_window(manufactured)
            )
    return Verdict(claim, judgement, other, text, tuple(findings))


def _manufactured(claim: Claim, evidence: Evidence) -> Legacy | None:
    """The legacy window if it makes such a ratio out of nothing; None if it was not seen to."""
    found = evidence.legacy
    if found is None or found.legacy is None or found.honest is None:
        return None
    facts, judge = found.facts, claim.judge
    sides = (getattr(judge, "candidate", None), getattr(judge, "reference", None))
    if sides != (facts.candidate, facts.reference):
        return None
    least = judge.ratio[0] or 0.0 if isinstance(judge, ThroughputRatio) else 0.0
    if found.legacy.ratio < max(LARGE, least * OF_CLAIM) or found.honest.ratio > NO_GAIN:
        return None
    return found


def _said_window(found: Legacy) -> str:
    if found.legacy is None or found.honest is None:
        raise ValueError("nothing was compared")
    facts = found.facts
    return (
        f"{facts.pair}, {facts.overload:.1f} times overloaded, {facts.candidate} with bounded over "
        f"{facts.reference} with unbounded admission: {_said(found.legacy)} by completed requests, "
        f"{_said(found.honest)} by all tokens of the same requests"
    )


def _said(found: Interval) -> str:
    blocks = "one block" if found.blocks == 1 else f"{found.blocks} blocks"
    if found.low is None or found.high is None:
        return f"{said_ratio(found)} ({blocks})"
    return f"{said_ratio(found)} ({figure(found.low)} to {figure(found.high)}, {blocks})"
