"""What can be said of a claim, and how findings at several places make one verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.claims.records import Claim, Range

Judgement = Literal["reproduced", "not reproduced", "artefact", "not testable here"]

Side = Literal["above", "below", "neither"]
"""Of 1."""

JUDGEMENTS: tuple[Judgement, ...] = (
    "reproduced",
    "not reproduced",
    "artefact",
    "not testable here",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one place shows. ``pair``, ``where``: its pair and load, if it has one; ``text``: a
    clause.

    ``value`` with ``low`` and ``high``: the figure that the claim was held against.
    """

    judgement: Judgement
    text: str
    pair: str | None = None
    where: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def place(self) -> str:
        """Pair and load."""
        return ", ".join(name for name in (self.pair, self.where) if name)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim judged. ``other_pair``: what was measured is the same experiment with other models
    than the claim's. ``evidence``: the cells that show it, or why nothing can. ``legacy``: of an
    artefact, how the same requests give both ratios."""

    claim: Claim
    judgement: Judgement
    other_pair: bool
    evidence: str
    findings: tuple[Finding, ...]
    legacy: str | None = None

    @property
    def tested(self) -> tuple[Finding, ...]:
        """The findings that say something."""
        return tuple(one for one in self.findings if one.judgement != "not testable here")

    @property
    def label(self) -> str:
        """The verdict in words."""
        return f"{self.judgement} (on another pair)" if self.other_pair else self.judgement


def untestable(text: str) -> Finding:
    """A finding that says why there is none."""
    return Finding("not testable here", text)


def combine(findings: Sequence[Finding]) -> tuple[Judgement, str]:
    """One judgement, and the text of it: reproduced only if it is so wherever it could be tested;
    not testable if that was nowhere."""
    tested = [found for found in findings if found.judgement != "not testable here"]
    if not tested:
        return "not testable here", said(findings)
    whole = all(found.judgement == "reproduced" for found in tested)
    return ("reproduced" if whole else "not reproduced"), said(findings)


def said(findings: Iterable[Finding]) -> str:
    """All of them in one sentence, by pair, places with the same text together."""
    places: dict[tuple[str | None, str], list[str]] = {}
    for found in findings:
        places.setdefault((found.pair, found.text), []).append(found.where)
    parts: list[str] = []
    before = None
    for pair in dict.fromkeys(pair for pair, _ in places):
        for (of, text), wheres in places.items():
            if of == pair:
                named = [pair if pair != before else None, *(where or None for where in wheres)]
                label = ", ".join(name for name in named if name)
                parts.append(f"{label}: {text}" if label else text)
                before = pair
    return "; ".join(parts)


def figure(value: float) -> str:
    """A number in three digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def said_range(claimed: Range) -> str:
    """A range in words."""
    low, high = claimed
    if low is None:
        return "any" if high is None else f"below {figure(high)}"
    if high is None:
        return f"above {figure(low)}"
    if figure(low) == figure(high):
        return figure(low)
    return f"{figure(low)} to {figure(high)}"


def overlaps(low: float, high: float, claimed: Range) -> bool:
    """Whether an interval reaches the claimed range."""
    bottom, top = claimed
    return (top is None or low <= top) and (bottom is None or high >= bottom)


def side_of(low: float, high: float) -> Side:
    """On which side of 1 an interval lies."""
    return "above" if low > 1 else "below" if high < 1 else "neither"


@dataclass(frozen=True, slots=True)
class Measured:
    """A ratio and its interval. ``shown``: on which side of 1 it is shown to be. ``smallest``: the
    ratio, above 1, that could have been shown, None if that is not known."""

    value: float
    low: float
    high: float
    shown: Side
    smallest: float | None = None

    @property
    def text(self) -> str:
        """With its interval."""
        return f"{figure(self.value)} ({figure(self.low)} to {figure(self.high)})"


def judge_ratio(found: Measured, claimed: Range) -> Finding:
    """A measured ratio against a claimed one.

    A claim that one side is better is reproduced if that is shown and the interval reaches the
    claimed range. If no difference is shown, it is not reproduced, unless the claimed difference is
    so small that it could not have been shown.
    """
    side = _side(claimed)
    reaches = overlaps(found.low, found.high, claimed)
    text = found.text
    if side == "neither":
        judgement: Judgement = "reproduced" if reaches else "not reproduced"
    elif found.shown == side:
        judgement = "reproduced" if reaches else "not reproduced"
    elif found.shown != "neither":
        judgement, text = "not reproduced", f"{text}, the other way round"
    elif reaches and _too_small(found, claimed):
        could = f" only {figure(found.smallest)} could be" if found.smallest else ""
        text = f"{text}: the claim and no difference are both within the interval;{could}"
        judgement, text = "not testable here", text.rstrip(";")
    else:
        judgement, text = "not reproduced", f"{text}, no difference shown"
    return Finding(judgement, text, value=found.value, low=found.low, high=found.high)


def ratio_or_reason(found: Measured | Finding, claimed: Range) -> Finding:
    """:func:`judge_ratio`, or why there is no ratio to judge."""
    return found if isinstance(found, Finding) else judge_ratio(found, claimed)


def _side(claimed: Range) -> Side:
    low, high = claimed
    if low is not None and low >= 1 and high != 1:
        return "above"
    if high is not None and high <= 1 and low != 1:
        return "below"
    return "neither"


def _too_small(found: Measured, claimed: Range) -> bool:
    """Whether the claimed difference to 1 is less than what could have been shown. A claim without
    a size has none that is too small."""
    low, high = claimed
    if low is None or high is None:
        return False
    least = low if low >= 1 else 1 / high
    return found.smallest is None or found.smallest > least


def at(found: Finding, pair: str, where: str = "") -> Finding:
    """The finding with its place."""
    return replace(found, pair=pair, where=where)
