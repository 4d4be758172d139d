"""Claims that no cell of a sweep is needed for: sizes, quotients, the concurrent test, audits."""

from __future__ import annotations

from bench.claims.concurrent import ConcurrentRow, read_concurrent
from bench.claims.evidence import Evidence
from bench.claims.records import (
    Audit,
    ConcurrentRate,
    ConcurrentServed,
    ConcurrentTarget,
    ConcurrentTime,
    Quotient,
    SizeRatio,
)
from bench.claims.verdicts import (
    Finding,
    Judgement,
    figure,
    overlaps,
    said_range,
    untestable,
)
from bench.inflate.shapes import find_shape
from bench.inflate.sizes import part_sizes

_ROUNDING = 0.002
"""By so much a quotient may differ from that of figures which were rounded themselves."""


def size_ratio(judge: SizeRatio, evidence: Evidence) -> list[Finding]:
    """Parameters of the published shapes."""
    sizes = [
        part_sizes(find_shape(name).parse(), 2)[-1].parameters
        for name in (judge.verifier, judge.draft)
    ]
    value = sizes[0] / sizes[1]
    text = (
        f"{judge.verifier} has {sizes[0] / 1e9:.2f} billion parameters, {judge.draft} "
        f"{sizes[1] / 1e9:.2f}: a ratio of {figure(value)}"
    )
    return [Finding(_within(value, judge.ratio), text, value=value)]


def _within(value: float, claimed: tuple[float | None, float | None]) -> Judgement:
    return "reproduced" if overlaps(value, value, claimed) else "not reproduced"


def quotient(judge: Quotient, evidence: Evidence) -> list[Finding]:
    """The arithmetic, which is all that can be checked of figures from elsewhere."""
    value = judge.dividend / judge.divisor
    holds = abs(value / judge.quotient - 1) <= _ROUNDING
    given = f"{judge.dividend:g} / {judge.divisor:g} = {value:.4g}"
    if judge.rests_on is None:
        return [Finding("reproduced" if holds else "not reproduced", given, value=value)]
    follows = "follows" if holds else "does not follow"
    return [untestable(f"{follows} from the document's figures ({given}), {judge.rests_on}")]


def audit(judge: Audit, evidence: Evidence) -> list[Finding]:
    """What the list of claims says."""
    return [untestable(judge.why)]


def concurrent_time(judge: ConcurrentTime, evidence: Evidence) -> list[Finding]:
    """Times of other hardware and models cannot be reproduced; ours stand beside them."""
    rows = _rows(evidence, judge.requests)
    ours = "the concurrent test was not run here"
    if rows:
        ours = "the same test here: " + ", ".join(_said(row) for row in rows)
    return [untestable(f"{judge.rests_on}; {ours}")]


def concurrent_target(judge: ConcurrentTarget, evidence: Evidence) -> list[Finding]:
    """The median time of so many requests at once."""
    rows = _rows(evidence, judge.requests)
    if not rows:
        return [_not_run(judge.requests)]
    return [
        Finding(
            "reproduced"
            if row.is_whole and row.time_s is not None and row.time_s < judge.seconds
            else "not reproduced",
            _said(row),
            value=row.time_s,
        )
        for row in rows
    ]


def concurrent_rate(judge: ConcurrentRate, evidence: Evidence) -> list[Finding]:
    """Requests/s with both numbers of requests."""
    rates = {
        requests: row.requests_per_s
        for requests in (judge.low, judge.high)
        for row in _rows(evidence, requests)
        if row.is_whole
    }
    low, high = rates.get(judge.low), rates.get(judge.high)
    if low is None or high is None:
        return [_not_run(judge.high if low else judge.low)]
    value = high / low
    text = (
        f"{figure(low)} requests/s with {judge.low} at once, {figure(high)} with {judge.high}: "
        f"a ratio of {figure(value)} where {said_range(judge.ratio)} was claimed"
    )
    return [Finding(_within(value, judge.ratio), text, value=value)]


def concurrent_served(judge: ConcurrentServed, evidence: Evidence) -> list[Finding]:
    """All rows with so many requests or more."""
    rows = [row for row in read_concurrent(evidence.folder) if row.requests >= judge.requests]
    if not rows:
        return [_not_run(judge.requests)]
    return [
        Finding("reproduced" if row.is_whole else "not reproduced", _said(row), value=row.time_s)
        for row in rows
    ]


def _rows(evidence: Evidence, requests: int) -> list[ConcurrentRow]:
    return [row for row in read_concurrent(evidence.folder) if row.requests == requests]


def _said(row: ConcurrentRow) -> str:
    if not row.is_whole or row.time_s is None:
        return f"{row.requests} at once were not all served"
    return f"{row.requests} at once took {row.time_s:.3g} s, the median of {row.repeats}"


def _not_run(requests: int) -> Finding:
    return untestable(f"the concurrent test was not run here with {requests} requests")
