"""What the clients saw in the window of time that counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.results.records import Counts, GpuUse, Load, RequestRecord, Use

LATE_SHARE = 0.01
"""Requests that are sent later than this share of the mean time to first token make a window
invalid."""

LATE_FLOOR_MS = 1.0
"""But not those that are sent less late than this: to wake up and to send takes some tenths of a
millisecond on an idle machine, and a request that crosses a network takes longer."""

_MS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One window. ``start_ns``, ``end_ns``: of ``time.monotonic_ns``.

    ``records``: all requests, in the order in which they were sent, those of the ramp included;
    their times are ns after the window's start. ``counts``: of :meth:`present`. ``lateness_ms``:
    how long after their scheduled arrival the requests that arrived in the window were sent, the
    99th percentile; None in a closed loop, which has no schedule. ``invalid``: why the window does
    not count, in one sentence. ``host_load``: cores that other programs of the machine used.
    """

    load: Load
    start_ns: int
    end_ns: int
    records: list[RequestRecord]
    counts: Counts
    lateness_ms: float | None = None
    invalid: str | None = None
    uses: dict[str, Use] = field(default_factory=dict)
    gpus: list[GpuUse] = field(default_factory=list)
    host_load: float | None = None

    @property
    def window_ns(self) -> int:
        """Its length."""
        return self.end_ns - self.start_ns

    @property
    def seconds(self) -> float:
        """Its length in seconds."""
        return self.window_ns / 1e9

    @property
    def tokens(self) -> int:
        """Every token that arrived in it, those of requests that its end cut off included."""
        return tokens_within(self.records, self.window_ns)

    @property
    def present(self) -> list[RequestRecord]:
        """The requests that were open in it, those that its end cut off included."""
        return present(self.records, self.window_ns)


def tokens_within(records: Iterable[RequestRecord], window_ns: int) -> int:
    """Tokens that arrived from a window's start until before its end."""
    return sum(count for record in records for at, count in record.events if 0 <= at < window_ns)


def present(records: Iterable[RequestRecord], window_ns: int) -> list[RequestRecord]:
    """The requests that had arrived before a window's end and had not ended before its start. To
    leave out those that its end cut off would be to favour short ones, and to hide how long they
    waited."""
    return [r for r in records if r.arrival_ns < window_ns and r.ended_ns >= 0]


def count(records: Sequence[RequestRecord], refusals: frozenset[str]) -> Counts:
    """How these requests fared; ``refusals``: the error codes by which a server refuses."""
    cut_off = sum(record.cut_off for record in records)
    refused = sum(r.error in refusals for r in records if not r.cut_off)
    completed = sum(r.error is None and r.finish != "abort" for r in records if not r.cut_off)
    return Counts(
        offered=len(records),
        completed=completed,
        refused=refused,
        failed=len(records) - completed - refused - cut_off,
        cut_off=cut_off,
    )


def lateness(records: Iterable[RequestRecord], window_ns: int) -> tuple[float | None, str | None]:
    """The 99th percentile, in ms, of how late the requests that arrived in a window were sent, None
    if none did; and why the window does not count, if it does not."""
    arrived = [record for record in records if 0 <= record.arrival_ns < window_ns]
    if not arrived:
        return None, None
    late = float(np.quantile([r.sent_ns - r.arrival_ns for r in arrived], 0.99)) / _MS
    waits = [record.events[0][0] - record.arrival_ns for record in arrived if record.events]
    ttft = float(np.mean(waits)) / _MS if waits else 0.0
    if late <= max(LATE_FLOOR_MS, LATE_SHARE * ttft):
        return late, None
    return late, (
        f"the clients were late: 1 % of the requests were sent {late:.2f} ms or more after their "
        f"scheduled arrival, which is over {LATE_SHARE:.0%} of the mean time to first token, "
        f"{ttft:.1f} ms"
    )
