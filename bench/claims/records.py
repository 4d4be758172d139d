"""The types of ``claims.yaml``: claims, where they are made, and how each is judged.

Candidates and pairs are looked up in a run by their names. A range ``[low, high]`` holds what a
claim says, its rounding included; an end that is null is open. Ratios are of the candidate over
the reference: 1.15 is 15 % more, 0.6 is 40 % less.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

SCHEMA_VERSION = 1
"""Of ``claims.yaml``."""

Range = tuple[float | None, float | None]
Level = Annotated[int, msgspec.Meta(ge=1)]
Levels = Annotated[list[Level], msgspec.Meta(min_length=1)]
"""Numbers of clients, or of requests that are open at once."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown fields are errors."""


class Citation(_Entry, frozen=True, kw_only=True):
    """Where a claim is made: ``document.md:line``, and the figures as that line has them."""

    at: Annotated[str, msgspec.Meta(pattern=r"^[^:]+:[1-9][0-9]*$")]
    figures: Annotated[list[str], msgspec.Meta(min_length=1)]

    @property
    def document(self) -> str:
        """The document's name."""
        return self.at.rpartition(":")[0]

    @property
    def line(self) -> int:
        """The line, from 1."""
        return int(self.at.rpartition(":")[2])


class _Ratio(_Entry, frozen=True, kw_only=True):
    candidate: str
    reference: str
    concurrency: Levels
    ratio: Range
    pair: str | None = None


class ThroughputRatio(_Ratio, frozen=True, kw_only=True, tag="throughput_ratio", tag_field="kind"):
    """Tokens/s at each of these numbers of clients."""


class LatencyRatio(_Ratio, frozen=True, kw_only=True, tag="latency_ratio", tag_field="kind"):
    """End-to-end latency at each of these numbers of clients."""

    measure: Literal["mean", "p95", "p99"]


class AverageRatio(_Ratio, frozen=True, kw_only=True, tag="average_ratio", tag_field="kind"):
    """The arithmetic mean over all these numbers of clients, of one over that of the other."""

    of: Literal["throughput", "latency"]


class Maximum(_Entry, frozen=True, kw_only=True, tag="maximum", tag_field="kind"):
    """At how many clients each candidate has its highest throughput."""

    at: dict[str, Level]
    pair: str | None = None


class Scaling(_Entry, frozen=True, kw_only=True, tag="scaling", tag_field="kind"):
    """The logarithm of the throughput ratio grows by ``slope`` for each client more."""

    candidate: str
    reference: str
    concurrency: Levels
    slope: Range


class ValleyClaim(_Entry, frozen=True, kw_only=True, tag="valley", tag_field="kind"):
    """The candidate has a valley against the reference (bench/report/valley.py)."""

    candidate: str
    reference: str


class ScenarioCount(_Entry, frozen=True, kw_only=True, tag="scenario_count", tag_field="kind"):
    """So many ``of`` the cells at these numbers of clients are ahead or behind."""

    candidate: str
    reference: str
    verdict: Literal["ahead", "behind"]
    count: int
    of: int
    concurrency: Levels


class Utilisation(_Entry, frozen=True, kw_only=True, tag="utilisation", tag_field="kind"):
    """GPU utilisation, 0 to 1, by candidate; without ``concurrency`` on average over all loads."""

    shares: dict[str, Range]
    concurrency: list[Level] = []
    pair: str | None = None


class Acceptance(_Entry, frozen=True, kw_only=True, tag="acceptance", tag_field="kind"):
    """The acceptance rate of each of these candidates under every load."""

    candidates: list[str]
    rate: Range
    pair: str | None = None


class SizeRatio(_Entry, frozen=True, kw_only=True, tag="size_ratio", tag_field="kind"):
    """Parameters of one published shape over those of another (bench/inflate/shapes.py)."""

    draft: str
    verifier: str
    ratio: Range


class OptionEffect(_Entry, frozen=True, kw_only=True, tag="option_effect", tag_field="kind"):
    """``best`` is the best value of an option of ``pdv-launch`` at these numbers of clients."""

    option: str
    best: str | float
    concurrency: Levels


class ConcurrentTime(_Entry, frozen=True, kw_only=True, tag="concurrent_time", tag_field="kind"):
    """So many requests at once take so long, on what the claim ``rests_on``."""

    requests: Level
    seconds: float
    rests_on: str


class ConcurrentTarget(
    _Entry, frozen=True, kw_only=True, tag="concurrent_target", tag_field="kind"
):
    """So many requests at once are to take less than this."""

    requests: Level
    seconds: float


class ConcurrentRate(_Entry, frozen=True, kw_only=True, tag="concurrent_rate", tag_field="kind"):
    """Requests/s with ``high`` requests at once over those with ``low``."""

    low: Level
    high: Level
    ratio: Range


class ConcurrentServed(
    _Entry, frozen=True, kw_only=True, tag="concurrent_served", tag_field="kind"
):
    """So many requests at once, or more, are all served."""

    requests: Level


class Quotient(_Entry, frozen=True, kw_only=True, tag="quotient", tag_field="kind"):
    """A quotient of two figures that the document gives. ``rests_on``: what those figures are, if
    they cannot be measured here."""

    dividend: float
    divisor: float
    quotient: float
    rests_on: str | None = None


class Audit(_Entry, frozen=True, kw_only=True, tag="audit", tag_field="kind"):
    """Cannot be tested by a run; ``why`` says why, and what is known of it otherwise."""

    why: str


Judge = (
    ThroughputRatio
    | LatencyRatio
    | AverageRatio
    | Maximum
    | Scaling
    | ValleyClaim
    | ScenarioCount
    | Utilisation
    | Acceptance
    | SizeRatio
    | OptionEffect
    | ConcurrentTime
    | ConcurrentTarget
    | ConcurrentRate
    | ConcurrentServed
    | Quotient
    | Audit
)


class Claim(_Entry, frozen=True, kw_only=True):
    """One claim, however often it is made. ``censored``: it rests on counting completed requests
    only. ``note``: what else a reader should know."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]+$")]
    says: str
    cited: Annotated[list[Citation], msgspec.Meta(min_length=1)]
    judge: Judge
    censored: bool = False
    note: str | None = None


class Exclusion(_Entry, frozen=True, kw_only=True):
    """Lines with digits that claim nothing: ``7, 26-29``, and why."""

    document: str
    lines: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(-[0-9]+)?(, [0-9]+(-[0-9]+)?)*$")]
    why: str

    @property
    def numbers(self) -> list[int]:
        """The lines one by one."""
        found: list[int] = []
        for part in self.lines.split(", "):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
        return found


class Claims(_Entry, frozen=True, kw_only=True):
    """``claims.yaml``. ``pairs``: titles of the documents' model pairs, by the name that a run
    gives them. ``names``: digits in these belong to a name and are no figures."""

    schema_version: int
    documents: list[str]
    pairs: dict[str, str]
    names: list[str]
    claims: list[Claim]
    excluded: list[Exclusion]
