"""What was measured of one variant at one concurrency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.handoff.processes import Use, total
from bench.handoff.states import STATES, state_class
from bench.statistics import MIN_BLOCKS, Ratio, paired_ratio
from pdv_mp.client.client import Completion
from pdv_mp.timeline import orchestration_share
from pdv_mp.workers.handoffs import combine, report


@dataclass(frozen=True, slots=True)
class Timed:
    """A round without timelines. ``window``: its start and end in ns (monotonic). ``tokens`` were
    made in it after ``prompt_tokens`` of prompts. ``handoffs``: ``info.handoffs`` of it alone;
    ``use``: by process."""

    window: tuple[int, int]
    tokens: int
    prompt_tokens: int
    handoffs: Mapping[str, Any]
    use: Use

    @property
    def rate(self) -> float:
        """Tokens/s."""
        return self.tokens * 1e9 / (self.window[1] - self.window[0])

    @property
    def us_per_token(self) -> float:
        """Wall time."""
        return 1e6 / self.rate

    @property
    def cycles(self) -> int:
        """Proposals that were verified."""
        edge = self.handoffs["draft>verify"]
        return int(edge["messages"] + edge["local"])


@dataclass
class Cell:
    """All rounds. ``tokens`` and what follows are of the requests with timelines."""

    timed: list[Timed] = field(default_factory=list)
    tokens: int = 0
    shares: list[float] = field(default_factory=list)
    state_ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))

    def add_timelines(self, completions: Iterable[Completion]) -> None:
        """A round with timelines."""
        for completion in completions:
            if completion.timeline is None:
                raise RuntimeError("a request ended without its timeline")
            self.shares.append(orchestration_share(completion.timeline))
            self.tokens += len(completion.ids)
            for name, entry in completion.timeline["states"].items():
                self.state_ns[state_class(name)] += entry["ns"]

    @property
    def rates(self) -> list[float]:
        """Tokens/s of each round."""
        return [found.rate for found in self.timed]

    @property
    def timed_tokens(self) -> int:
        """Tokens made in the rounds without timelines."""
        return sum(found.tokens for found in self.timed)

    @property
    def edges(self) -> dict[str, Any]:
        """``info.handoffs`` of all timed rounds."""
        return report(combine((found.handoffs, 1) for found in self.timed))

    @property
    def use(self) -> Use:
        """By process, over all timed rounds."""
        return total(found.use for found in self.timed)

    def us_per_token(self, state: str) -> float:
        """A request's time in a class of states, per token."""
        return self.state_ns[state] / self.tokens / 1000


Cells = Mapping[tuple[str, int], Cell]
"""By the variant's name and the concurrency."""


def ratio_of(cell: Cell, reference: Cell, alpha: float) -> Ratio | None:
    """Throughput over that of the reference, paired by rounds; None if these are too few."""
    if len(cell.timed) < MIN_BLOCKS:
        return None
    return paired_ratio(cell.rates, reference.rates, alpha)


def ratio_fields(ratio: Ratio | None, name: str = "ratio") -> dict[str, float | None]:
    """Columns of a CSV."""
    columns = (name, f"{name}_low", f"{name}_high", f"{name}_alpha")
    if ratio is None:
        return dict.fromkeys(columns)
    numbers = (ratio.estimate, ratio.low, ratio.high, ratio.alpha)
    return dict(zip(columns, numbers, strict=True))
