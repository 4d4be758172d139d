"""Where the wall time of a token goes, and the gap between two topologies taken apart.

At each instant of a measured window either some worker computes, or none does and a message is on
its way (from the start of its encoding to the end of its decoding, between any two processes of the
server), or neither. These three add up to the window, so divided by the tokens made in it they are
the wall time per token, the inverse of the throughput.

The time in which some worker computes is all workers' compute time less what ran at the same time.
A stage's compute time per token is rows per token × time per row, and its time per row depends on
how many rows share a batch: a batch of b rows takes about α + β b, fitted to batches of the
reference topology. So the gap between a topology and the reference has five parts:

- ``messages``: change of the time in which nothing computes and a message is on its way.
- ``waiting``: change of the time in which neither is so: forming batches, scheduling, publishing,
  text, the client; and a process that is ready while its core is given to another.
- ``dilution``: change of the compute time per row that α + β b gives for the two mean batch sizes.
- ``contention``: ``slower``, the rest of the change of the time per row (the same batch takes
  longer because others use the cores or the memory, or because its worker has fewer threads), and
  ``overlap``, the change of the compute time that ran at the same time as other compute time, which
  is negative where there is more of it. Workers that share cores have both; their sum says what the
  sharing costs, or gains.
- ``discarded``: change of the rows per token: drafts that were thrown away, rows computed again.

Products are split at the mean of both topologies, so that the parts add up to the gap exactly.
``messages`` and ``waiting`` are measured. Dilution against contention is an attribution: it is as
good as the fit. So are the product's halves when both factors change much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

PARTS = ("messages", "waiting", "dilution", "contention", "discarded")
OF_CONTENTION = ("slower", "overlap")

Intervals = npt.NDArray[np.int64]
"""[N, 2]: starts and ends in ns."""


@dataclass(frozen=True, slots=True)
class StageBatch:
    """One batch of a stage; ``start_ns`` and ``end_ns`` of its computing."""

    stage: str
    start_ns: int
    end_ns: int
    rows: int


@dataclass(slots=True)
class StageWork:
    """What a stage computed."""

    batches: int = 0
    rows: int = 0
    compute_ns: int = 0


@dataclass(slots=True)
class Wall:
    """Measured windows of a topology at one concurrency, added up. Times in ns.

    ``busy_ns``: some worker computed. ``message_ns``: none did, and a message was on its way.
    """

    tokens: int = 0
    wall_ns: int = 0
    busy_ns: int = 0
    message_ns: int = 0
    work: dict[str, StageWork] = field(default_factory=dict)

    def add(
        self,
        window: tuple[int, int],
        tokens: int,
        batches: Iterable[StageBatch],
        messages: Iterable[tuple[int, int]],
    ) -> None:
        """One window more. Batches and messages outside it do not count; none may cross its
        borders, at which the server is idle."""
        start, end = window
        inside = [b for b in batches if start <= b.start_ns and b.end_ns <= end]
        computing = intervals((b.start_ns, b.end_ns) for b in inside)
        moving = intervals(m for m in messages if start <= m[0] and m[1] <= end)
        busy = covered(computing)
        self.tokens += tokens
        self.wall_ns += end - start
        self.busy_ns += busy
        self.message_ns += covered(np.concatenate([computing, moving])) - busy
        for batch in inside:
            work = self.work.setdefault(batch.stage, StageWork())
            work.batches += 1
            work.rows += batch.rows
            work.compute_ns += batch.end_ns - batch.start_ns

    @property
    def compute_ns(self) -> int:
        """The compute time of all workers."""
        return sum(work.compute_ns for work in self.work.values())

    @property
    def ns_per_token(self) -> float:
        """Wall time per token."""
        return self.wall_ns / self.tokens


@dataclass(frozen=True, slots=True)
class BatchCost:
    """A batch of b rows takes ``fixed_ns`` + ``row_ns`` × b."""

    fixed_ns: float
    row_ns: float

    def per_row(self, rows: float) -> float:
        """Time per row in batches of so many rows on average."""
        return self.fixed_ns / rows + self.row_ns


def intervals(pairs: Iterable[tuple[int, int]]) -> Intervals:
    """Pairs as an array."""
    return np.array(list(pairs), np.int64).reshape(-1, 2)


def covered(parts: Intervals) -> int:
    """The length of the union."""
    if not len(parts):
        return 0
    parts = parts[np.argsort(parts[:, 0], kind="stable")]
    reached = np.maximum.accumulate(parts[:, 1])
    starts = parts[:, 0].copy()
    starts[1:] = np.maximum(starts[1:], reached[:-1])
    return int(np.maximum(parts[:, 1] - starts, 0).sum())


def fit_costs(batches: Iterable[StageBatch]) -> dict[str, BatchCost]:
    """Least squares of batches' times on their rows, by stage; neither number is negative. Batches
    of one size alone say nothing about another: they are taken to cost the same whatever it is."""
    points: dict[str, list[tuple[int, int]]] = {}
    for batch in batches:
        points.setdefault(batch.stage, []).append((batch.rows, batch.end_ns - batch.start_ns))
    return {stage: _fit(np.array(found, np.float64)) for stage, found in points.items()}


def _fit(points: npt.NDArray[np.float64]) -> BatchCost:
    rows, times = points.T
    spread = float(((rows - rows.mean()) ** 2).sum())
    slope = 0.0
    if spread:
        slope = float(((rows - rows.mean()) * (times - times.mean())).sum()) / spread
    fixed = float(times.mean() - slope * rows.mean())
    if slope < 0:
        return BatchCost(float(times.mean()), 0.0)
    if fixed < 0:
        return BatchCost(0.0, float((rows * times).sum() / (rows**2).sum()))
    return BatchCost(fixed, slope)


def gap(reference: Wall, other: Wall, costs: Mapping[str, BatchCost]) -> dict[str, float]:
    """By part, how many ns per token ``other`` takes more than ``reference``.

    ``costs``: by stage, of the reference. :data:`PARTS` add up to the difference of
    :attr:`Wall.ns_per_token`, :data:`OF_CONTENTION` to ``contention``.
    """
    parts = dict.fromkeys((*PARTS, *OF_CONTENTION), 0.0)
    for wall, sign in ((other, 1), (reference, -1)):
        parts["messages"] += sign * wall.message_ns / wall.tokens
        parts["waiting"] += sign * (wall.wall_ns - wall.busy_ns - wall.message_ns) / wall.tokens
        parts["overlap"] -= sign * (wall.compute_ns - wall.busy_ns) / wall.tokens
    for stage in {**reference.work, **other.work}:
        one = reference.work.get(stage, StageWork())
        two = other.work.get(stage, StageWork())
        time_one, time_two = _time_per_row(one, two), _time_per_row(two, one)
        rows_one, rows_two = one.rows / reference.tokens, two.rows / other.tokens
        parts["discarded"] += (rows_two - rows_one) * (time_one + time_two) / 2
        diluted = 0.0
        if one.batches and two.batches:
            cost = costs[stage]
            diluted = cost.per_row(two.rows / two.batches) - cost.per_row(one.rows / one.batches)
        rows = (rows_one + rows_two) / 2
        parts["dilution"] += rows * diluted
        parts["slower"] += rows * (time_two - time_one - diluted)
    parts["contention"] = parts["slower"] + parts["overlap"]
    return parts


def _time_per_row(work: StageWork, otherwise: StageWork) -> float:
    known = work if work.rows else otherwise
    return known.compute_ns / known.rows if known.rows else 0.0
