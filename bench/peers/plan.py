"""What one comparison measures, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.load.held_out import HeldOut, read_tokenizer
from bench.peers.records import CellRecord, Workload

Prompts = list[list[int]]

OURS = "pdv_mp"
"""The peer that is us."""

WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: ``load`` for an engine until it is ready, conversion and compilation included,
    ``answer`` for one turn. ``once_below``: an engine of others whose first turn in a cell is below
    this share of the best such engine's is not measured again there. ``judged``: so many requests
    of a turn are checked."""

    load: float = 900.0
    answer: float = 300.0
    once_below: float = 0.7
    judged: int = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """One mode of one peer; ``most``: the highest concurrency that it takes part in."""

    peer: str
    mode: str
    most: int | None = None

    @property
    def name(self) -> str:
        """As in the records."""
        return f"{self.peer}:{self.mode}"

    def takes_part(self, concurrency: int) -> bool:
        """Whether it is measured at that concurrency."""
        return self.most is None or concurrency <= self.most


@dataclass(frozen=True, slots=True)
class Cell:
    """One workload at one concurrency in one round."""

    workload: Workload
    concurrency: int
    round: int


@dataclass(frozen=True, slots=True)
class Plan:
    """``rounds``: of each concurrency."""

    engines: tuple[Choice, ...]
    workloads: tuple[Workload, ...]
    concurrencies: tuple[int, ...]
    rounds: tuple[int, ...]
    seed: int
    threads: int
    draft_tokens: int
    limits: Limits = Limits()

    @property
    def context(self) -> int:
        """The most tokens of a request, with room for a draft."""
        return max(load.prompt + load.output for load in self.workloads) + 32

    def cells(self) -> Iterator[Cell]:
        """Round after round, so that a run that is cut off has measured everything."""
        for number in range(max(self.rounds)):
            for load in self.workloads:
                for concurrency, rounds in zip(self.concurrencies, self.rounds, strict=True):
                    if number < rounds:
                        yield Cell(load, concurrency, number)


class PromptSource:
    """Fresh prompts from the held-out files, the same for all engines of a cell and in every run
    with the seed."""

    def __init__(self, checkpoint: Path, seed: int) -> None:
        self._held_out = HeldOut(read_tokenizer(checkpoint / "tokenizer.json"))
        self._seed = seed

    def of(self, cell: Cell) -> Prompts:
        """Raises WorkloadError if they are longer than all files."""
        load = cell.workload
        return self._cut(load.prompt, cell.concurrency, load.output, cell.round)

    def warm_up(self, length: int, concurrency: int) -> Prompts:
        """Prompts that no cell has."""
        return self._cut(length, concurrency, 0, 0)

    def _cut(self, length: int, count: int, *key: int) -> Prompts:
        generator = np.random.default_rng((self._seed, length, count, *key))
        return [self._held_out.cut(length, generator) for _ in range(count)]


def rotated(engines: Sequence[str], turn: int) -> list[str]:
    """Another one is first in every turn."""
    at = turn % max(1, len(engines))
    return [*engines[at:], *engines[:at]]


def far_behind(records: Sequence[CellRecord], share: float) -> set[str]:
    """Engines of others whose first turn was below ``share`` of the best of them. ``records``: of
    one pair, workload and concurrency."""
    first: dict[str, float] = {}
    for record in records:
        if not record.engine.startswith(f"{OURS}:"):
            first.setdefault(record.engine, record.rate)
    best = max(first.values(), default=0.0)
    return {engine for engine, rate in first.items() if rate < share * best}
