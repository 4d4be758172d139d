"""The goals on one H200, and whether a run reached them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LARGE, GIANT = "llama-2-7b", "codellama-34b"
DEVICE = "H200"


@dataclass(frozen=True, slots=True)
class Goal:
    """At least so many tokens/s in the best of some cells, whose names begin and end so.

    ``times``: at least so many times the best of the cells named by ``over``, instead.
    """

    text: str
    cells: tuple[str, str]
    least: float = 0.0
    times: float = 0.0
    over: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal with the best median found, None where its cells are missing."""

    goal: Goal
    found: float | None
    least: float | None

    @property
    def word(self) -> str:
        """What the table says."""
        if self.found is None or self.least is None:
            return "not measured"
        return "reached" if self.found >= self.least else "missed"


GOALS = (
    Goal("7B plain, batch 1", (f"{LARGE}, plain", ", batch 1"), 260),
    Goal("7B, agreement 0.7, batch 1", (f"{LARGE}, agreement 0.7", ", batch 1"), 400),
    Goal("7B, agreement 0.42, batch 1", (f"{LARGE}, agreement 0.42", ", batch 1"), 300),
    Goal("7B, agreement 0.7, batch 32", (f"{LARGE}, agreement 0.7", ", batch 32"), 9000),
    Goal("7B, agreement 0.7, batch 128", (f"{LARGE}, agreement 0.7", ", batch 128"), 13000),
    Goal(
        "7B, agreement 0.7, batch 128, over our own plain",
        (f"{LARGE}, agreement 0.7", ", batch 128"),
        times=1.25,
        over=f"{LARGE}, plain, batch 128",
    ),
    Goal("34B, agreement 0.7, batch 1", (f"{GIANT}, agreement 0.7", ", batch 1"), 130),
)


def judge(found: Mapping[str, Sequence[float]]) -> list[Verdict]:
    """Compare medians with the goals; ``found``: decoding rates by cell."""
    verdicts = []
    for goal in GOALS:
        first, last = (re.escape(part) for part in goal.cells)
        pattern = re.compile(f"{first}(, (auto|[0-9]+) drafts)?{last}")
        rates = [statistics.median(v) for name, v in found.items() if pattern.fullmatch(name)]
        best = max(rates, default=None)
        least: float | None = goal.least
        if goal.over:
            base = found.get(goal.over)
            least = None if base is None else goal.times * statistics.median(base)
        verdicts.append(Verdict(goal, best, least))
    return verdicts
