"""The map of valleys: where a topology's handoffs cost more than they bring, and how surely."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.emulation.records import Trial
from bench.statistics import ALPHA, MIN_BLOCKS, paired_ratio

REFERENCE = "unified"
STUDY = "valley"

EXPECTED = 0.995
"""The law expects a valley where a topology has less than this share of the reference's rate."""

Verdict = Literal["loss", "gain", "not shown", "one window"]


@dataclass(frozen=True, slots=True)
class Place:
    """One topology at one step length (``step_ms``, of the verifier for one row) and concurrency:
    shares of the reference's rate, ``expected`` by the law and ``found``, a geometric mean over
    ``blocks`` pairs of windows. ``low`` and ``high``: its interval, as wide as is needed for those
    of all places of the topology to hold at once (Bonferroni); None with one pair."""

    setup: str
    step_ms: float
    concurrency: int
    expected: float
    found: float
    low: float | None
    high: float | None
    blocks: int

    @property
    def verdict(self) -> Verdict:
        """What the interval shows; nothing if it holds 1."""
        if self.low is None or self.high is None:
            return "one window"
        if self.high < 1:
            return "loss"
        return "gain" if self.low > 1 else "not shown"

    @property
    def residual(self) -> float:
        """found / expected - 1."""
        return self.found / self.expected - 1

    @property
    def where(self) -> str:
        """In words."""
        return f"steps of {self.step_ms:g} ms and {clients(self.concurrency)}"


def places(trials: Iterable[Trial], predictions: Mapping[str, Mapping[str, float]]) -> list[Place]:
    """All places at which the reference was measured in the same turn at least once."""
    rates: dict[tuple[float, int, str], dict[tuple[int, int], float]] = {}
    expected: dict[tuple[float, int, str], float] = {}
    for trial in trials:
        law = predictions.get(STUDY, {}).get(trial.id)
        if trial.study == STUDY and trial.rate and trial.step_ms is not None and law:
            key = trial.step_ms, trial.concurrency, trial.setup
            rates.setdefault(key, {})[trial.turn] = trial.rate
            expected.setdefault(key, law)
    pairs = {}
    for (step_ms, concurrency, setup), mine in rates.items():
        key = step_ms, concurrency, REFERENCE
        blocks = sorted(mine.keys() & rates.get(key, {}).keys())
        if setup != REFERENCE and blocks:
            pairs[step_ms, concurrency, setup] = blocks
    together = Counter(setup for (_, _, setup), blocks in pairs.items() if len(blocks) > 1)
    found = []
    for (step_ms, concurrency, setup), blocks in pairs.items():
        key = step_ms, concurrency, REFERENCE
        values, reference = ([rates[k][b] for b in blocks] for k in ((*key[:2], setup), key))
        share = expected[step_ms, concurrency, setup] / expected[key]
        low = high = None
        ratio = values[0] / reference[0]
        if len(blocks) > 1:
            interval = paired_ratio(values, reference, ALPHA / together[setup])
            ratio, low, high = interval.estimate, interval.low, interval.high
        found.append(Place(setup, step_ms, concurrency, share, ratio, low, high, len(blocks)))
    order = {setup: number for number, setup in enumerate(dict.fromkeys(p.setup for p in found))}
    return sorted(found, key=lambda p: (order[p.setup], p.step_ms, p.concurrency))


@dataclass(frozen=True)
class Valley:
    """What the map says of one topology; at least one place."""

    setup: str
    places: Sequence[Place]

    @property
    def predicted(self) -> Place | None:
        """Where the law expected the deepest loss; None if it expected none."""
        least = min(self.places, key=lambda place: place.expected)
        return least if least.expected < EXPECTED else None

    @property
    def found(self) -> Place | None:
        """The deepest of the losses that are shown; None without any."""
        return min(self.of("loss"), key=lambda place: place.found, default=None)

    @property
    def lowest(self) -> Place:
        """Where the least was found, shown or not."""
        return min(self.places, key=lambda place: place.found)

    @property
    def has_intervals(self) -> bool:
        """Whether any place was measured more than once."""
        return any(place.low is not None for place in self.places)

    def of(self, verdict: Verdict) -> list[Place]:
        """The places with it."""
        return [place for place in self.places if place.verdict == verdict]

    @property
    def title(self) -> str:
        """One finding."""
        law = (
            f"the law said {_below(self.predicted.expected)} at {self.predicted.where}"
            if self.predicted
            else "the law said that it loses nowhere"
        )
        if not self.has_intervals:
            return (
                f"Emulated, one window each, so nothing is shown: {self.setup} was lowest at "
                f"{self.lowest.where}, {_share(self.lowest)} of {REFERENCE}'s rate; {law}"
            )
        if self.found is None:
            return f"Emulated: no loss of {self.setup} is shown at {len(self.places)} places; {law}"
        return (
            f"Emulated: {self.setup} loses most at {self.found.where}, {_below(self.found.found)} "
            f"({_lost(self.found)}) of {REFERENCE}'s rate; {law}"
        )

    @property
    def words(self) -> str:
        """What was expected and found, in sentences."""
        parts = [f"**{self.setup}**.", *self._expected(), *self._found(), *self._counts()]
        errors = [abs(place.residual) for place in self.places]
        worst = max(self.places, key=lambda place: abs(place.residual))
        parts.append(
            f"The law is off by {statistics.median(errors):.1%} in the median place, and farthest "
            f"({worst.residual:+.0%}) at {worst.where}."
        )
        return " ".join(parts)

    def _expected(self) -> Iterable[str]:
        place = self.predicted
        if place is None:
            yield f"The law expected no valley: nowhere less than {EXPECTED:.1%} of {REFERENCE}."
            return
        yield (
            f"The law expected the deepest point of the valley at {place.where}: "
            f"{_below(place.expected)} fewer tokens/s than {REFERENCE}."
        )
        there = "more" if place.found > 1 else "fewer"
        sure = "in one window" if place.low is None else _interval_words(place)
        shown = ", so no difference is shown there" if place.verdict == "not shown" else ""
        yield f"Found there: {_below(place.found)} {there} ({sure}{shown})."

    def _found(self) -> Iterable[str]:
        if not self.has_intervals:
            yield (
                f"The lowest of the single windows: {_share(self.lowest)} at {self.lowest.where}."
            )
        elif self.found is not None and self.found is not self.predicted:
            yield (
                f"The deepest loss that is shown is at {self.found.where}: "
                f"{_below(self.found.found)} fewer ({_interval_words(self.found)}), where the law "
                f"said {self.found.expected:.2f} of {REFERENCE}'s rate."
            )
        elif self.found is not None:
            yield "That is also the deepest loss that is shown."

    def _counts(self) -> Iterable[str]:
        if not self.has_intervals:
            return
        losses = self.of("loss")
        text = f"A loss is shown at {len(losses)} of {len(self.places)} places"
        if losses:
            text += f" (up to steps of {max(place.step_ms for place in losses):g} ms)"
        text += f", a gain at {len(self.of('gain'))}, neither at {len(self.of('not shown'))}"
        single = len(self.of("one window"))
        yield text + (f"; {single} were measured once only." if single else ".")


def valleys(found: Sequence[Place]) -> list[Valley]:
    """One for each topology."""
    return [
        Valley(setup, [place for place in found if place.setup == setup])
        for setup in dict.fromkeys(place.setup for place in found)
    ]


def caveats(found: Sequence[Place]) -> list[str]:
    """What a reader must know of the intervals of these places."""
    repeated = [place for place in found if place.low is not None]
    if not repeated:
        return [
            "Each place was measured in one window: **there are no intervals**, so no loss and no "
            "gain is shown. `--blocks 4` or more repeats the windows."
        ]
    fewest, most = min(p.blocks for p in found), max(p.blocks for p in found)
    blocks = f"{most}" if fewest == most else f"{fewest} to {most}"
    parts = [
        f"Each place was measured in {blocks} windows of each topology, taken in turn, and only "
        "windows of one turn are compared. A loss is one whose interval lies below 1, a gain one "
        "whose interval lies above; the rest is *not shown*, which is not to say that there is no "
        "difference.",
        f"The intervals are so wide that all of a topology hold at once with {1 - ALPHA:.0%} "
        "confidence. Still the deepest of many places is deepest partly by chance, and intervals "
        "say how windows of the same servers scatter, not how another hour is.",
    ]
    if fewest < MIN_BLOCKS:
        parts.append(
            f"With fewer than {MIN_BLOCKS} windows they rest on the logarithms of the ratios being "
            "normally distributed."
        )
    return parts


def clients(count: int) -> str:
    """``1 client``, ``8 clients``."""
    return "1 client" if count == 1 else f"{count} clients"


def _below(ratio: float) -> str:
    return f"{abs(1 - ratio):.0%}"


def _share(place: Place) -> str:
    return f"{place.found:.0%}"


def _lost(place: Place) -> str:
    """The interval of a loss, the smaller loss first."""
    low, high = place.low or math.nan, place.high or math.nan
    return f"{1 - high:.0%} to {1 - low:.0%}"


def _interval_words(place: Place) -> str:
    return f"interval {place.low:.2f} to {place.high:.2f} of {REFERENCE}'s rate"
