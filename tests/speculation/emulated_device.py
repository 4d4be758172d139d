"""A device that is a table of costs, and requests whose drafts are kept by the roll of dice.

What a cycle takes is computed, never measured, so a controller can be judged against the best fixed
length to the last nanosecond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pdv_mp.speculation.draft_length.controller import (
    CycleTimes,
    DecodeBatch,
    DraftLengthController,
)

MICROSECOND = 1000


@dataclass(frozen=True)
class Device:
    """Times in microseconds. ``verify``: of a step over so many rows of sequences with so many
    tokens together. ``draft``: of one forward for so many sequences; ``fed``: of one token that it
    feeds as well. ``overhead``: of a cycle without and with drafts."""

    verify: Callable[[int, int], float]
    draft: Callable[[int], float]
    fed: float = 0.0
    overhead: tuple[float, float] = (50.0, 100.0)

    def cycle(self, sequences: int, length: int, context: int) -> float:
        """Of a cycle in which all draft ``length`` tokens."""
        drafting = length * self.draft(sequences)
        verifying = self.verify(sequences * (length + 1), context)
        return drafting + verifying + self.overhead[length > 0]

    def rehearsal(self, batches: Sequence[int], lengths: Sequence[int]) -> list[CycleTimes]:
        """What a worker measures before it serves: cycles of texts of 128 tokens."""
        return [
            CycleTimes(
                sequences=batch,
                rows=batch * (length + 1),
                context=128 * batch,
                verify_ns=int(self.verify(batch * (length + 1), 128 * batch) * MICROSECOND),
                drafting=batch if length else 0,
                steps=length,
                draft_ns=int(length * self.draft(batch) * MICROSECOND),
            )
            for batch in batches
            for length in lengths
        ]


DEVICES = {
    # A GPU whose steps read 13 GB of weights, with a draft of a sixth of that.
    "memory-bound": Device(
        verify=lambda rows, context: max(3073, 17 * rows) + 0.122 * context,
        draft=lambda sequences: 481 + 0.6 * sequences,
        fed=2.8,
    ),
    # Two cores: from 14 rows on each row costs as much as the one before.
    "compute-bound": Device(
        verify=lambda rows, context: max(20_000, 1400 * rows) + 0.5 * context,
        draft=lambda sequences: 250 + 15 * sequences,
        fed=15,
    ),
    # As measured: a few rows cost little, more than a dozen each their share.
    "two shared cores": Device(
        verify=lambda rows, context: (
            float(np.interp(rows, (1, 8, 16, 32, 64, 320), (13e3, 16e3, 24.5e3, 43e3, 75e3, 370e3)))
            + 0.3 * context
        ),
        draft=lambda sequences: 350 + 12 * sequences,
        fed=12,
        overhead=(900, 1100),
    ),
    "expensive draft": Device(
        verify=lambda rows, context: max(3000, 17 * rows) + 0.05 * context,
        draft=lambda sequences: 1600 + 5 * sequences,
        fed=10,
    ),
    "draft as dear as the verifier": Device(
        verify=lambda rows, context: max(1000, 20 * rows),
        draft=lambda sequences: max(1000, 20 * sequences),
        fed=20,
    ),
    # Kernels in tiles of 16 rows, and a launch that costs more than small steps.
    "tiles": Device(
        verify=lambda rows, context: 900 + 260 * -(-rows // 16),
        draft=lambda sequences: 120 + 12 * -(-sequences // 16),
        fed=2,
    ),
}


@dataclass
class Requests:
    """``sequences`` at a time, each of which gets ``max_tokens`` and is followed by another;
    ``endless`` ones are not, and only their contexts begin again."""

    sequences: int
    max_tokens: int
    rng: np.random.Generator
    endless: bool = False
    prompt: int = 128
    emitted: np.ndarray = field(init=False)
    gaps: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.emitted = self.rng.integers(0, self.max_tokens - 1, self.sequences)
        self.gaps = np.zeros(self.sequences, np.int64)

    @property
    def batch(self) -> DecodeBatch:
        room = np.full_like(self.emitted, 1000) if self.endless else self.max_tokens - self.emitted
        return DecodeBatch(
            slots=np.arange(self.sequences),
            limits=room - 1,
            contexts=self.prompt + self.emitted,
            remaining=room,
            gaps=self.gaps.copy(),
        )

    def advance(self, lengths: np.ndarray, accepted: np.ndarray) -> list[int]:
        """The sequences that ended."""
        self.emitted += accepted + 1
        self.gaps = np.where(lengths > 0, 0, self.gaps + 1)
        ended = np.flatnonzero(self.emitted >= self.max_tokens)
        self.emitted[ended] = 0
        if self.endless:
            return []
        self.gaps[ended] = 0
        return ended.tolist()


@dataclass
class Run:
    """By cycle: what was chosen, the time that it took, and the tokens that it emits on average."""

    lengths: list[np.ndarray] = field(default_factory=list)
    microseconds: list[float] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)

    def goodput(self, first: int = 0, last: int | None = None) -> float:
        """Expected tokens per second of the cycles ``first`` .. ``last``."""
        return 1e6 * sum(self.expected[first:last]) / sum(self.microseconds[first:last])

    @property
    def longest(self) -> list[int]:
        """The longest draft of each cycle."""
        return [int(lengths.max()) for lengths in self.lengths]


def serve(
    controller: DraftLengthController,
    device: Device,
    requests: Requests,
    acceptance: Callable[[int], float],
    cycles: int,
    noise: Callable[[np.random.Generator], float] = lambda rng: 1.0,
) -> Run:
    """``acceptance``: the probability that a draft is kept, by cycle. ``noise``: by how much a
    step's measured time is wrong."""
    run, rng = Run(), requests.rng
    for cycle in range(cycles):
        alpha = acceptance(cycle)
        lengths, accepted, took = one_cycle(
            controller, device, requests.batch, np.full(requests.sequences, alpha), rng, noise
        )
        for slot in requests.advance(lengths, accepted):
            controller.forget(slot)
        run.lengths.append(lengths)
        run.microseconds.append(took)
        run.expected.append(float(np.array([emitted(alpha, length) for length in lengths]).sum()))
    return run


def serve_together(
    controller: DraftLengthController,
    device: Device,
    acceptance: np.ndarray,
    tokens: int,
    rng: np.random.Generator,
) -> float:
    """Requests that begin together, get as many tokens each, and are followed by nobody; the
    microseconds until all have them. ``acceptance``: of each one's drafts."""
    count, took = len(acceptance), 0.0
    got, gaps = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for slot in range(count):
        controller.forget(slot)
    while len(slots := np.flatnonzero(got < tokens)):
        left = tokens - got[slots]
        batch = DecodeBatch(slots, left - 1, 128 + got[slots], left, gaps[slots])
        lengths, accepted, microseconds = one_cycle(
            controller, device, batch, acceptance[slots], rng
        )
        got[slots] += accepted + 1
        gaps[slots] = np.where(lengths > 0, 0, gaps[slots] + 1)
        took += microseconds
    return took


def one_cycle(
    controller: DraftLengthController,
    device: Device,
    batch: DecodeBatch,
    alphas: np.ndarray,
    rng: np.random.Generator,
    noise: Callable[[np.random.Generator], float] = lambda rng: 1.0,
) -> tuple[np.ndarray, np.ndarray, float]:
    """What was drafted and kept for each sequence, and the microseconds that it took."""
    passes = not batch.limits.any() or controller.passes()
    lengths = np.zeros_like(batch.slots) if passes else controller.choose(batch)
    assert (lengths >= 0).all()
    assert (lengths <= np.minimum(batch.limits, controller.max_length)).all()
    sequences = len(lengths)
    drafting, steps = int((lengths > 0).sum()), int(lengths.max())
    fed = int(batch.gaps[lengths > 0].sum())
    context = int(batch.contexts.sum())
    rows = sequences + int(lengths.sum())
    draft = steps * device.draft(max(1, drafting)) + fed * device.fed
    verify, overhead = device.verify(rows, context), device.overhead[steps > 0]
    hits = rng.random((sequences, max(1, steps))) < alphas[:, None]
    accepted = np.minimum(np.logical_and.accumulate(hits, axis=1).sum(axis=1), lengths)
    controller.judged(batch.slots, lengths, accepted)
    measured = CycleTimes(
        sequences=sequences,
        rows=rows,
        context=context,
        verify_ns=int(verify * noise(rng) * MICROSECOND),
        overhead_ns=int(overhead * noise(rng) * MICROSECOND),
    )
    if steps:
        measured = measured._replace(
            drafting=drafting,
            steps=steps,
            fed=fed,
            draft_ns=int(draft * noise(rng) * MICROSECOND),
        )
    controller.timed(measured)
    return lengths, accepted, draft + verify + overhead


def emitted(alpha: float, length: int) -> float:
    """Tokens of a cycle on average: (1 - alpha ** (k + 1)) / (1 - alpha)."""
    return float(sum(alpha**place for place in range(int(length) + 1)))


def best_fixed(device: Device, sequences: int, alpha: float, longest: int, context: int) -> float:
    """Tokens per second of the best length, all sequences drafting all the time."""
    return max(
        1e6 * sequences * emitted(alpha, k) / device.cycle(sequences, k, context)
        for k in range(longest + 1)
    )
