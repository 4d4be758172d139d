"""Blocks of a cell taken together: means with intervals over blocks, quantiles of all requests.

Warm-up blocks, those that are followed, give timelines and nothing else. A mean over requests, or a
share, is the sum over all blocks / their number, with an interval over blocks; throughput is the
geometric mean of the blocks'. These intervals hold with the run's alpha each, and one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.report.metrics import MS, CellMetrics, Followed, Unfinished, Values
from bench.report.states import GROUPS, group_of
from bench.report.summaries import (
    CellSummary,
    Durations,
    Estimate,
    GpuSummary,
    Latency,
    Problem,
    ProcessUse,
    Speculation,
    TimeSpent,
)
from bench.results.records import Candidate, CellRecord, Counts, Load, Objective, Pair
from bench.statistics import geometric_mean, pooled_quantile, ratio_of_sums

CLIENTS = "clients"
"""The name of the clients' own process among a cell's uses."""


@dataclass(frozen=True, slots=True)
class CellBlocks:
    """What was measured of one cell. ``counted``: the blocks that count, ``warm_up``: those with
    timelines; ``measured``: how many were begun that are no warm-up."""

    pair: Pair
    candidate: Candidate
    load: Load
    measured: int
    problems: tuple[Problem, ...]
    counted: tuple[CellMetrics, ...]
    warm_up: tuple[CellMetrics, ...]

    @property
    def throughput(self) -> dict[int, float]:
        """Output tokens/s by block."""
        return {metrics.cell.block: metrics.tokens_per_s for metrics in self.counted}

    @property
    def mean_e2e(self) -> dict[int, float]:
        """Mean end-to-end latency in ms by block in which requests ended."""
        return {m.cell.block: float(m.e2e_ms.mean()) for m in self.counted if len(m.e2e_ms)}


def summarise(blocks: CellBlocks, objective: Objective, alpha: float) -> CellSummary:
    """One cell over all its blocks."""
    counted = blocks.counted
    cells = [metrics.cell for metrics in counted]
    mean = _Means(counted, alpha)
    has_objective = objective != Objective()
    followed = [m.followed for m in blocks.warm_up if m.followed is not None]
    prefill, decode, durations = _durations(mean, followed, alpha)
    server = [_server_cores(cell) for cell in cells if cell.uses]
    tokens = sum(m.tokens for m in counted if m.cell.uses)
    cpu = sum(_server_cores(m.cell) * m.seconds for m in counted if m.cell.uses)
    return CellSummary(
        pair=blocks.pair.name,
        candidate=blocks.candidate.name,
        load=blocks.load.name,
        shape=blocks.load,
        topology=blocks.candidate.topology,
        twin_of=blocks.candidate.twin_of,
        measured=blocks.measured,
        blocks=len(counted),
        problems=blocks.problems,
        counts=_total(cell.counts for cell in cells),
        errors=dict(sum((Counter(m.errors) for m in counted), Counter())),
        block_throughput=blocks.throughput,
        throughput=geometric_mean(list(blocks.throughput.values()), alpha),
        requests_per_s=mean.of(lambda m: m.completed, lambda m: m.seconds),
        goodput=mean.of(lambda m: m.good, lambda m: m.seconds) if has_objective else None,
        ttft=mean.latency(lambda m: m.ttft_ms, lambda m: m.waiting),
        tpot=mean.latency(lambda m: m.tpot_ms),
        inter_event=mean.latency(lambda m: m.inter_event_ms),
        e2e=mean.latency(lambda m: m.e2e_ms, lambda m: m.running),
        tokens_per_event=mean.of(lambda m: m.tokens, lambda m: m.events),
        speculation=_speculation(mean),
        prefill_ms=prefill,
        decode_ms=decode,
        durations=durations,
        time_spent=_time_spent(followed, alpha),
        uses=_uses(cells),
        server_cores=float(np.mean(server)) if server else None,
        cpu_seconds_per_token=cpu / tokens if tokens else None,
        gpus=_gpus(cells),
        lateness_ms=max((c.lateness_ms for c in cells if c.lateness_ms is not None), default=None),
        host_load=_mean([c.host_load for c in cells if c.host_load is not None]),
        mean_tokens=_mean_tokens(counted),
    )


def _mean_tokens(blocks: Sequence[CellMetrics]) -> tuple[float, float] | None:
    known = [block.asked for block in blocks if block.asked is not None]
    if not known:
        return None
    return float(np.mean([prompt for prompt, _ in known])), float(np.mean([n for _, n in known]))


@dataclass(frozen=True, slots=True)
class _Means:
    """Means of one cell's blocks."""

    blocks: Sequence[CellMetrics]
    alpha: float

    def of(
        self, above: Callable[[CellMetrics], float], below: Callable[[CellMetrics], float]
    ) -> Estimate | None:
        """The sum of ``above`` over that of ``below``."""
        return ratio_of_sums(
            [above(block) for block in self.blocks],
            [below(block) for block in self.blocks],
            self.alpha,
        )

    def latency(
        self,
        values: Callable[[CellMetrics], Values],
        unfinished: Callable[[CellMetrics], Unfinished] | None = None,
    ) -> Latency:
        """Of the requests of all blocks."""
        samples = [values(block) for block in self.blocks]
        open_still = [unfinished(block) for block in self.blocks] if unfinished else []
        ages = [found.oldest_ms for found in open_still if found.oldest_ms is not None]
        return Latency(
            mean=self.of(lambda m: float(values(m).sum()), lambda m: len(values(m))),
            p50=pooled_quantile(samples, 0.5),
            p95=pooled_quantile(samples, 0.95),
            p99=pooled_quantile(samples, 0.99),
            samples=sum(len(found) for found in samples),
            unfinished=sum(found.count for found in open_still),
            oldest_unfinished_ms=max(ages, default=None),
        )


def _speculation(mean: _Means) -> Speculation:
    found = [block.drafts for block in mean.blocks]
    cycles = sum(drafts.cycles for drafts in found)
    positions = max((len(drafts.accepted_at) for drafts in found), default=0)
    at = [sum(d.accepted_at[i] for d in found if i < len(d.accepted_at)) for i in range(positions)]
    return Speculation(
        acceptance_rate=mean.of(lambda m: m.drafts.accepted, lambda m: m.drafts.drafted),
        acceptance_length=mean.of(
            lambda m: m.drafts.cycles + m.drafts.accepted, lambda m: m.drafts.cycles
        ),
        draft_length=mean.of(lambda m: m.drafts.drafted, lambda m: m.drafts.cycles),
        per_position=tuple(count / cycles for count in at) if cycles else (),
        cycles=cycles,
        plain=sum(drafts.plain for drafts in found),
        drafted=sum(drafts.drafted for drafts in found),
        accepted=sum(drafts.accepted for drafts in found),
    )


def _durations(
    mean: _Means, followed: Sequence[Followed], alpha: float
) -> tuple[Estimate | None, Estimate | None, Durations]:
    """Prefill and decode per request: from the states of followed requests, else from TTFT less the
    time in the server's queue, and from the time after the first token."""
    if any(len(block.prefill_ms) for block in followed):
        counts = [len(block.prefill_ms) for block in followed]
        prefill = ratio_of_sums([float(b.prefill_ms.sum()) for b in followed], counts, alpha)
        decode = ratio_of_sums([float(b.decode_ms.sum()) for b in followed], counts, alpha)
        return prefill, decode, "timelines"
    prefill = mean.of(lambda m: float((m.ttft_ms - m.queue_ms).sum()), lambda m: len(m.ttft_ms))
    decode = mean.of(lambda m: float(m.decode_ms.sum()), lambda m: len(m.decode_ms))
    return prefill, decode, "arrivals"


def _time_spent(followed: Sequence[Followed], alpha: float) -> TimeSpent | None:
    state_ns = sum((Counter(block.state_ns) for block in followed), Counter[str]())
    total, tokens = sum(state_ns.values()), sum(block.tokens for block in followed)
    if not total or not tokens:
        return None
    groups = dict.fromkeys(GROUPS, 0)
    for state, spent in state_ns.items():
        groups[group_of(state)] += spent
    if len(followed) > 1:
        above = [float(block.orchestration_ns.sum()) for block in followed]
        share = ratio_of_sums(above, [float(block.e2e_ns.sum()) for block in followed], alpha)
    else:
        (block,) = followed
        share = ratio_of_sums(block.orchestration_ns.tolist(), block.e2e_ns.tolist(), alpha)
    if share is None:
        return None
    return TimeSpent(
        requests=sum(len(block.e2e_ns) for block in followed),
        tokens=tokens,
        ms_per_token=total * MS / tokens,
        states={state: spent / total for state, spent in state_ns.items()},
        groups={group: spent / total for group, spent in groups.items()},
        group_ms_per_token={group: spent * MS / tokens for group, spent in groups.items()},
        orchestration_share=share,
        over="blocks" if len(followed) > 1 else "requests",
    )


def _total(counts: Iterable[Counts]) -> Counts:
    names = Counts.__struct_fields__
    found = list(counts)
    return Counts(**{name: sum(getattr(each, name) for each in found) for name in names})


def _server_cores(cell: CellRecord) -> float:
    return sum(use.cores for name, use in cell.uses.items() if name != CLIENTS)


def _uses(cells: Sequence[CellRecord]) -> Mapping[str, ProcessUse]:
    found: dict[str, ProcessUse] = {}
    for name in dict.fromkeys(name for cell in cells for name in cell.uses):
        with_it = [(cell.uses[name], cell.window_ns / 1e9) for cell in cells if name in cell.uses]
        seconds = sum(length for _, length in with_it)
        pss = [use.pss_bytes for use, _ in with_it if use.pss_bytes is not None]
        found[name] = ProcessUse(
            cores=sum(use.cores * length for use, length in with_it) / seconds,
            voluntary_switches_per_s=sum(u.voluntary_switches for u, _ in with_it) / seconds,
            involuntary_switches_per_s=sum(u.involuntary_switches for u, _ in with_it) / seconds,
            rss_bytes=max(use.rss_bytes for use, _ in with_it),
            pss_bytes=max(pss, default=None),
        )
    return found


def _gpus(cells: Sequence[CellRecord]) -> tuple[GpuSummary, ...]:
    found = []
    for number in range(max((len(cell.gpus) for cell in cells), default=0)):
        uses = [cell.gpus[number] for cell in cells if number < len(cell.gpus)]
        found.append(
            GpuSummary(
                name=uses[0].name,
                utilisation=float(np.mean([use.utilisation for use in uses])),
                memory_bytes=max(use.memory_bytes for use in uses),
            )
        )
    return tuple(found)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
