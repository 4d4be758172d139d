"""What a server did between two of its ``info`` answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pdv_mp.metrics.histogram import difference, quantile
from pdv_mp.metrics.reading import cycles
from pdv_mp.workers.handoffs import between

Info = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An ``info`` and when it came, in s (monotonic)."""

    at: float
    info: Info


class Window:
    """The snapshots of the last ``seconds``, one older than that included where there is one."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._snapshots: deque[Snapshot] = deque()

    def add(self, snapshot: Snapshot) -> None:
        """A new one; those of an earlier server are forgotten."""
        snapshots = self._snapshots
        if snapshots and snapshots[-1].info["instance"] != snapshot.info["instance"]:
            snapshots.clear()
        snapshots.append(snapshot)
        while len(snapshots) > 2 and snapshots[1].at <= snapshot.at - self._seconds:
            snapshots.popleft()

    @property
    def span(self) -> Span | None:
        """From the first to the last; None while there is no snapshot."""
        return Span(self._snapshots[0], self._snapshots[-1]) if self._snapshots else None


def number(info: Any, *path: str) -> Any:
    """What is at a path of keys; 0 where one is missing."""
    for key in path:
        if not isinstance(info, Mapping) or key not in info:
            return 0
        info = info[key]
    return info


def table(info: Any, *path: str) -> Mapping[str, Any]:
    """The map at a path of keys; an empty one where one is missing."""
    found: Mapping[str, Any] = number(info, *path) or {}
    return found


@dataclass(frozen=True, slots=True)
class Span:
    """Two snapshots of one server; rates are None where they are the same one."""

    before: Snapshot
    after: Snapshot

    @property
    def info(self) -> Info:
        """The present state."""
        return self.after.info

    @property
    def seconds(self) -> float:
        """The time between them."""
        return self.after.at - self.before.at

    def grown(self, *path: str) -> float:
        """By how much the number at a path has grown."""
        grown: float = number(self.after.info, *path) - number(self.before.info, *path)
        return grown

    def rate(self, *path: str) -> float | None:
        """The growth of the number at a path, per second."""
        return self.grown(*path) / self.seconds if self.seconds else None

    @property
    def finished(self) -> float | None:
        """Requests a second that ended by a stop or their length."""
        rates = [self.rate("counters", "finished", name) for name in ("stop", "length")]
        return None if None in rates else sum(filter(None, rates))

    def latency(self, name: str, share: float) -> float | None:
        """A quantile in s of one of ``info.served``'s latencies; None without samples."""
        after = table(self.after.info, "served", "latencies", name)
        if not after:
            return None
        before = table(self.before.info, "served", "latencies", name) or None
        if self.before is self.after:
            before = None
        counts = difference(after, before)["counts"]
        found = quantile(self.after.info["served"]["latency_bounds_ns"], counts, share)
        return None if found is None else found / 1e9

    @property
    def cycles(self) -> tuple[int, int, int]:
        """Cycles with drafts, their draft tokens, and the accepted ones."""
        start = (0, 0, 0) if self.before is self.after else cycles(self.before.info)
        one, two, three = (new - old for new, old in zip(cycles(self.info), start, strict=True))
        return one, two, three

    @property
    def accepted_per_position(self) -> list[float]:
        """The share of the cycles that drafted a token at a position which accepted it."""
        drafted, accepted = (self._lengths(f"{kind}_lengths") for kind in ("drafted", "accepted"))
        shares = []
        for position in range(1, len(drafted)):
            asked = sum(drafted[position:])
            if not asked:
                break
            shares.append(sum(accepted[position:]) / asked)
        return shares

    def _lengths(self, name: str) -> list[int]:
        after = number(self.after.info, "served", name) or []
        before = number(self.before.info, "served", name) or []
        if self.before is self.after:
            return list(after)
        return [new - old for new, old in zip(after, before, strict=True)]

    @property
    def handoffs(self) -> dict[str, Any]:
        """``info.handoffs`` of this time; since the start where there is one snapshot only."""
        after = table(self.after.info, "handoffs")
        if self.before is self.after:
            return dict(after)
        return between(table(self.before.info, "handoffs"), after)
