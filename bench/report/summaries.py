"""The types of an analysis: what a report says, derived from raw records and from nothing else.

Candidates, loads and pairs are known by their names in ``run.json``, and everything is in its
order. Times are in ms unless a name says otherwise, rates are per second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bench.results.records import Counts, End, Load, Run
from bench.statistics import Estimate as Estimate
from bench.statistics import Quantile, Ratio

Verdict = Literal["ahead", "behind", "no difference shown", "too few blocks", "failed"]
NOT_COMPARED: tuple[Verdict, ...] = ("too few blocks", "failed")
ValleyVerdict = Literal["valley", "no valley", "too few blocks", "not testable with these loads"]
Durations = Literal["timelines", "arrivals"]


@dataclass(frozen=True, slots=True)
class Latency:
    """One latency in ms. ``mean``: of all requests, its interval over blocks. A quantile, with its
    95 % interval, is None where ``samples``, the number of values, is too small to tell it.

    ``unfinished``: requests whose value was not known when a window ended, and
    ``oldest_unfinished_ms`` how long the one that had waited longest had done so by then. If that
    is beyond a quantile, the quantile may be higher than it seems.
    """

    mean: Estimate | None
    p50: Quantile | None
    p95: Quantile | None
    p99: Quantile | None
    samples: int
    unfinished: int = 0
    oldest_unfinished_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Speculation:
    """How drafts fared, over all requests that were open in a window. None: nothing was drafted.

    ``acceptance_rate``: accepted / drafted; ``acceptance_length``: 1 + accepted / cycles;
    ``draft_length``: drafted / cycles. ``per_position``: share of the cycles in which the token at
    this position of the draft was accepted. ``plain``: passes of the verifier without drafts, which
    are in none of these.
    """

    acceptance_rate: Estimate | None
    acceptance_length: Estimate | None
    draft_length: Estimate | None
    per_position: tuple[float, ...]
    cycles: int
    plain: int
    drafted: int
    accepted: int

    @property
    def per_pass(self) -> tuple[float, float]:
        """Draft tokens, and output tokens, for each pass of the verifier, plain ones included."""
        passes = self.cycles + self.plain
        if not passes:
            return 0.0, 1.0
        return self.drafted / passes, (passes + self.accepted) / passes


@dataclass(frozen=True, slots=True)
class TimeSpent:
    """Where the time of the requests of followed blocks went, from their timelines.

    ``states``: share of time by state, ``groups``: by group of states (bench/report/states.py);
    both add up to 1. ``group_ms_per_token``: the same as time per output token.
    ``orchestration_share``: encode + wire + decode + inbox + batch + publish + text + outbox, as
    docs/protocol.md defines it; its interval is over followed blocks, or over requests where one
    block was followed (``over`` says which).
    """

    requests: int
    tokens: int
    ms_per_token: float
    states: Mapping[str, float]
    groups: Mapping[str, float]
    group_ms_per_token: Mapping[str, float]
    orchestration_share: Estimate
    over: Literal["blocks", "requests"]


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What one process used in a window, on average over blocks. ``rss_bytes``, ``pss_bytes``: the
    most at any window's end."""

    cores: float
    voluntary_switches_per_s: float
    involuntary_switches_per_s: float
    rss_bytes: int
    pss_bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuSummary:
    """``utilisation``: mean, 0 to 1; ``memory_bytes``: the most."""

    name: str
    utilisation: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a cell's block does not count. ``kind``: ``failed``, there is nothing to count;
    ``invalid``, what there is does not count; ``replaced``, it was measured again."""

    block: int
    kind: Literal["failed", "invalid", "replaced"]
    reason: str


@dataclass(frozen=True, slots=True)
class CellSummary:
    """One candidate under one load with one pair, over all blocks that count.

    ``measured``: blocks that were begun, warm-up not included; ``blocks``: those that count.
    A cell without any has None for what follows from them; ``problems`` says why.
    ``throughput``: output tokens/s, the geometric mean over blocks; ``block_throughput``: by block.
    ``goodput``: requests/s that met the run's objective, None without one. ``errors``: by code.
    ``prefill_ms``, ``decode_ms``: per request; ``durations`` says what they are taken from.
    ``uses``: by process, the clients' as ``clients``; ``server_cores``: all others together.
    ``cpu_seconds_per_token``: of the server. ``mean_tokens``: of prompt and output of the requests
    that were open, None without any. ``bound``: the output tokens/s that the machine's rates allow,
    None where they are not known (bench/report/bounds.py).
    """

    pair: str
    candidate: str
    load: str
    shape: Load
    topology: str
    twin_of: str | None
    measured: int
    blocks: int
    problems: tuple[Problem, ...]
    counts: Counts
    errors: Mapping[str, int]
    block_throughput: Mapping[int, float]
    throughput: Estimate | None
    requests_per_s: Estimate | None
    goodput: Estimate | None
    ttft: Latency
    tpot: Latency
    inter_event: Latency
    e2e: Latency
    tokens_per_event: Estimate | None
    speculation: Speculation
    prefill_ms: Estimate | None
    decode_ms: Estimate | None
    durations: Durations
    time_spent: TimeSpent | None
    uses: Mapping[str, ProcessUse]
    server_cores: float | None
    cpu_seconds_per_token: float | None
    gpus: tuple[GpuSummary, ...]
    lateness_ms: float | None
    host_load: float | None
    mean_tokens: tuple[float, float] | None
    bound: float | None = None

    @property
    def share_of_bound(self) -> float | None:
        """Measured tokens/s / :attr:`bound`."""
        if self.throughput is None or self.bound is None:
            return None
        return self.throughput.value / self.bound

    @property
    def orchestration_share(self) -> Estimate | None:
        """Of :attr:`time_spent`."""
        return None if self.time_spent is None else self.time_spent.orchestration_share


@dataclass(frozen=True, slots=True)
class Cause:
    """What differs most between candidate and reference where a token's time goes.

    ``group``: the group of states whose time per token changed most, in the direction in which the
    whole did; both times in ms per token. Cores: those of the servers, None where not known.
    """

    group: str
    group_ms: float
    group_ms_reference: float
    ms_per_token: float
    ms_per_token_reference: float
    cores: float | None
    cores_reference: float | None

    @property
    def text(self) -> str:
        """As a clause."""
        more = "more" if self.group_ms >= self.group_ms_reference else "less"
        change = abs(self.group_ms - self.group_ms_reference)
        said = (
            f"{change:.2f} ms {more} per token for {self.group} "
            f"({self.group_ms:.2f} instead of {self.group_ms_reference:.2f} ms)"
        )
        if self.cores is not None and self.cores_reference is not None:
            said += f", {self.cores:.2f} instead of {self.cores_reference:.2f} cores busy"
        return said


@dataclass(frozen=True, slots=True)
class Comparison:
    """``candidate`` against ``reference`` by throughput, block by block.

    ``ratio`` is None with fewer than two common blocks. ``floor``: the ratio, 1 or above, that two
    equal servers differed by under this load; 1 if ``floor_known`` is false, because there was no
    twin. ``lost``: blocks that were begun but do not count for both. ``smallest_effect``: the true
    ratio, above 1, that would have been shown with a probability of 80 %. ``e2e_ratio``: of the
    blocks' mean end-to-end latencies, below 1 if the candidate's are shorter; these intervals hold
    at once with an ``alpha`` of their own, and no verdict follows from them.
    """

    pair: str
    load: str
    candidate: str
    reference: str
    ratio: Ratio | None
    floor: float
    floor_known: bool
    verdict: Verdict
    blocks: int
    lost: int
    smallest_effect: float | None
    cause: Cause | None
    e2e_ratio: Ratio | None = None


@dataclass(frozen=True, slots=True)
class Noise:
    """What two equal servers differed by: the A/A comparison. ``holds``: whether the interval of
    their ratio holds 1, None if there are too few blocks to say. ``floor``: the ratio, 1 or above.
    """

    pair: str
    load: str
    candidate: str
    twin: str
    ratio: Ratio | None
    floor: float
    blocks: int
    holds: bool | None


@dataclass(frozen=True, slots=True)
class ValleyPoint:
    """One place of the map: a closed loop of so many clients. ``ratio``: as in its comparison."""

    load: str
    concurrency: int
    ratio: Ratio | None
    orchestration_share: Estimate | None
    orchestration_share_reference: Estimate | None


@dataclass(frozen=True, slots=True)
class Contrast:
    """The ratio in the middle zone over the ratio in a neighbouring zone (``beside``): below 1, the
    middle lies lower. All contrasts' intervals hold at once."""

    beside: Literal["few clients", "many clients"]
    ratio: Ratio


@dataclass(frozen=True, slots=True)
class Valley:
    """Whether ``candidate`` has a valley against ``reference``: a throughput ratio at 6 to 16
    clients that lies below that at 1 to 4 and that at 32 or more. ``text`` says why (not)."""

    pair: str
    candidate: str
    reference: str
    verdict: ValleyVerdict
    points: tuple[ValleyPoint, ...]
    contrasts: tuple[Contrast, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What to run under one load. ``candidate``: None if nothing was measured well enough.

    ``fastest``: the one with the highest throughput; another is chosen if it has fewer processes
    and is not shown to be behind. ``ratio``: of the chosen one to ``runner_up``, the fastest of the
    others; None without one. ``shown``: whether it is shown to be ahead of it.
    """

    load: str
    candidate: str | None
    processes: int | None
    fastest: str | None
    throughput: Estimate | None
    runner_up: str | None
    ratio: Ratio | None
    shown: bool


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to run with one pair on this machine: a choice for each load, and three sentences."""

    pair: str
    choices: tuple[Choice, ...]
    sentences: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Analysis:
    """All that a report says. ``end``: None if the run was cut off or is still going on.

    ``blocks``: how many were begun, warm-up not included; ``alpha``: the error probability that
    all intervals of comparisons share, ``comparisons_alpha`` that of each of them; the contrasts
    of all valleys share another ``alpha``, and intervals of cells have ``alpha`` each.
    ``warnings``: what a reader must know before anything else, as sentences; empty if all is well.
    """

    run: Run
    end: End | None
    blocks: int
    alpha: float
    comparisons_alpha: float
    cells: tuple[CellSummary, ...]
    comparisons: tuple[Comparison, ...]
    noise: tuple[Noise, ...]
    valleys: tuple[Valley, ...]
    recommendations: tuple[Recommendation, ...]
    warnings: tuple[str, ...]

    def cell(self, pair: str, candidate: str, load: str) -> CellSummary:
        """Raises KeyError if the run was not to measure it."""
        for cell in self.cells:
            if (cell.pair, cell.candidate, cell.load) == (pair, candidate, load):
                return cell
        raise KeyError((pair, candidate, load))

    def comparison(self, pair: str, load: str, candidate: str, reference: str) -> Comparison:
        """Raises KeyError if these are not compared: one is a twin, or both are the same."""
        for found in self.comparisons:
            names = (found.pair, found.load, found.candidate, found.reference)
            if names == (pair, load, candidate, reference):
                return found
        raise KeyError((pair, load, candidate, reference))
