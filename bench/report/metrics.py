"""What the requests of one cell add up to, taken from its raw records once.

A window is [0, W) on the requests' clock; they began up to a ramp before it.

- Throughput counts every token that arrived in the window, whatever became of its request.
- TTFT counts the requests whose first token arrived in the window, and end-to-end latency (E2E) and
  TPOT those that ended in it with all their tokens, however long ago they came. Each request has
  one first token and one end, so in a steady state the window sees a fair sample of both, while
  those that *came and ended* in it would be the short ones. All latencies begin at the scheduled
  arrival, and E2E ends with the last token.
- What had not happened when the window ended cannot be counted. It is reported: how many requests
  still waited for their first token or for their end, and how long the oldest of them had. Where
  that is longer than a quantile, or more wait than have ended, the quantile is too low: the window
  is too short for this load, or the server is overloaded.
- Inter-event time: between events of one request of which the later one arrived in the window.
- TPOT = (E2E - TTFT) / (tokens - 1); a request with one token has none.
- A good request is one of those that E2E counts, and meets every limit of the run's objective.
- Speculation is summed over all requests open in the window, those that its end cut off included
  (their terminal message says what was drafted until then). To leave these out would favour short
  ones. No draft reaches beyond ``max_tokens``, so a request that ended by its length had as many
  draft tokens accepted as its output has; one that a stop ended may have had more, which were cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.report.states import group_of, is_orchestration, phase_of
from bench.results.records import CellRecord, Objective, RequestRecord
from bench.results.store import ResultsError

Values = npt.NDArray[np.float64]

MS = 1e-6
"""Of a nanosecond."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Requests whose latency was not known at the window's end; the oldest one's age in ms."""

    count: int
    oldest_ms: float | None


@dataclass(frozen=True, slots=True)
class Drafts:
    """Sums of ``done.speculation``; ``accepted_at``: by position of the draft. ``plain``: passes of
    the verifier without drafts, each of which made one token."""

    cycles: int
    plain: int
    drafted: int
    accepted: int
    accepted_at: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Followed:
    """Timelines of one cell: ns by state, ns of orchestration and end to end by request [n]."""

    state_ns: Mapping[str, int]
    orchestration_ns: Values
    e2e_ns: Values
    tokens: int
    prefill_ms: Values
    decode_ms: Values


@dataclass(frozen=True, slots=True)
class CellMetrics:
    """One cell. Arrays have one value for each request (or gap) that the latency counts, in ms.

    ``queue_ms``: of those that TTFT counts, as the server timed it, 0 where it did not say.
    ``asked``: mean tokens of prompt and output of all requests open in the window, those of an
    unfinished one's output being as many as it may have; None without any.
    """

    cell: CellRecord
    tokens: int
    events: int
    completed: int
    good: int
    ttft_ms: Values
    queue_ms: Values
    tpot_ms: Values
    inter_event_ms: Values
    e2e_ms: Values
    decode_ms: Values
    waiting: Unfinished
    running: Unfinished
    drafts: Drafts
    errors: Mapping[str, int]
    followed: Followed | None
    asked: tuple[float, float] | None

    @property
    def seconds(self) -> float:
        """The window's length."""
        return self.cell.window_ns / 1e9

    @property
    def tokens_per_s(self) -> float:
        """Output tokens/s."""
        return self.tokens / self.seconds


def measure(
    cell: CellRecord, requests: Sequence[RequestRecord], objective: Objective
) -> CellMetrics:
    """The metrics of a cell that did not fail. Raises ResultsError for timelines and speculation
    that are not those of docs/protocol.md."""
    window = cell.window_ns
    if window <= 0:
        raise ResultsError(f"cell {cell.id} has a window of {window} ns")
    started = [r for r in requests if r.events and 0 <= r.events[0][0] < window]
    ended = [r for r in requests if _is_complete(r) and 0 <= r.ended_ns < window]
    stamps, counts, gaps = _events(requests)
    inside = (stamps >= 0) & (stamps < window)
    e2e = _array([_last(r) - r.arrival_ns for r in ended])
    first = _array([r.events[0][0] - r.arrival_ns if r.events else 0 for r in ended])
    steps = np.asarray([sum(n for _, n in r.events) - 1 for r in ended], np.int64)
    several = steps > 0
    tpot = np.zeros_like(e2e)
    tpot[several] = (e2e - first)[several] / steps[several]
    present = [r for r in requests if r.arrival_ns < window and r.ended_ns >= 0]
    open_at_end = [r for r in requests if r.cut_off]
    silent = [r for r in open_at_end if not r.events or r.events[0][0] >= window]
    try:
        drafts = _drafts(present)
        followed = _followed(present, window) if cell.followed else None
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"the requests of cell {cell.id}: {error!r} in a message") from error
    return CellMetrics(
        cell=cell,
        tokens=int(counts[inside].sum()),
        events=int(np.count_nonzero(inside)),
        completed=len(ended),
        good=int(np.count_nonzero(_good(objective, first, tpot, e2e))),
        ttft_ms=_array([r.events[0][0] - r.arrival_ns for r in started]),
        queue_ms=np.asarray([(r.timing or {}).get("queue_ms") or 0.0 for r in started]),
        tpot_ms=tpot[several],
        inter_event_ms=gaps[inside & ~np.isnan(gaps)] * MS,
        e2e_ms=e2e,
        decode_ms=e2e - first,
        waiting=_unfinished(silent, window),
        running=_unfinished(open_at_end, window),
        drafts=drafts,
        errors=Counter(r.error for r in requests if r.error is not None),
        followed=followed,
        asked=_asked(present),
    )


def _asked(requests: Sequence[RequestRecord]) -> tuple[float, float] | None:
    if not requests:
        return None
    outputs = [
        sum(n for _, n in request.events) if _is_complete(request) else request.max_tokens
        for request in requests
    ]
    prompts = [request.prompt_tokens for request in requests]
    return sum(prompts) / len(requests), sum(outputs) / len(requests)


def _is_complete(request: RequestRecord) -> bool:
    return request.finish in ("length", "stop") and request.error is None and bool(request.events)


def _last(request: RequestRecord) -> int:
    return request.events[-1][0]


def _array(nanoseconds: Sequence[int]) -> Values:
    return np.asarray(nanoseconds, np.float64) * MS


def _unfinished(requests: Sequence[RequestRecord], window: int) -> Unfinished:
    ages = [window - request.arrival_ns for request in requests]
    return Unfinished(len(ages), max(ages) * MS if ages else None)


def _good(objective: Objective, ttft: Values, tpot: Values, e2e: Values) -> npt.NDArray[np.bool_]:
    """Which requests [n] meet all limits."""
    good = np.ones(len(e2e), np.bool_)
    limits = (objective.ttft_ms, objective.tpot_ms, objective.e2e_ms)
    for values, limit in zip((ttft, tpot, e2e), limits, strict=True):
        if limit is not None:
            good &= values <= limit
    return good


def _events(
    requests: Sequence[RequestRecord],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Values]:
    """Of all events [n]: when, how many tokens, and ns since the request's event before, NaN for
    its first."""
    pairs = [pair for request in requests for pair in request.events]
    if not pairs:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    events = np.asarray(pairs, np.int64)
    gaps = np.empty(len(events))
    gaps[1:] = np.diff(events[:, 0])
    lengths = [len(request.events) for request in requests if request.events]
    gaps[np.cumsum([0, *lengths[:-1]])] = np.nan
    return events[:, 0], events[:, 1], gaps


def _drafts(requests: Sequence[RequestRecord]) -> Drafts:
    cycles = plain = drafted = accepted = 0
    at: list[int] = []
    for request in requests:
        if request.speculation is None:
            continue
        mine, kept = int(request.speculation["cycles"]), int(request.speculation["accepted"])
        cycles += mine
        accepted += kept
        drafted += int(request.speculation["drafted"])
        # The first token is the prompt's; the last cycle may have made more than were wanted.
        plain += max(0, len(request.ids) - 1 - mine - kept)
        positions = request.speculation["accepted_per_pos"]
        at.extend([0] * (len(positions) - len(at)))
        for position, count in enumerate(positions):
            at[position] += int(count)
    return Drafts(cycles, plain, drafted, accepted, tuple(at))


def _followed(requests: Sequence[RequestRecord], window: int) -> Followed | None:
    timed = [(request, request.timeline) for request in requests if request.timeline is not None]
    if not timed:
        return None
    state_ns: Counter[str] = Counter()
    phases: list[dict[str, int]] = []
    orchestration: list[int] = []
    for request, timeline in timed:
        phase = {"prefill": 0, "decode": 0}
        spent_here = 0
        for state, entry in timeline["states"].items():
            spent = int(entry["ns"])
            group_of(state)
            state_ns[state] += spent
            spent_here += spent * is_orchestration(state)
            kind = phase_of(state)
            if kind is not None:
                phase[kind] += spent
        orchestration.append(spent_here)
        if _is_complete(request) and request.ended_ns < window:
            phases.append(phase)
    return Followed(
        state_ns=dict(state_ns),
        orchestration_ns=np.asarray(orchestration, np.float64),
        e2e_ns=np.asarray([timeline["e2e_ns"] for _, timeline in timed], np.float64),
        tokens=sum(len(request.ids) for request, _ in timed),
        prefill_ms=_array([phase["prefill"] for phase in phases]),
        decode_ms=_array([phase["decode"] for phase in phases]),
    )
