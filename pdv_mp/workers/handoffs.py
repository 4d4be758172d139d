"""What handing work from one stage to the next costs, by edge and part.

An edge is ``<from>><to>``, a part one of docs/protocol.md's orchestration states. Whoever knows a
part records it: the receiver of a message its ``encode``, ``wire`` and ``decode``, the process that
forms batches ``inbox`` and ``batch``, the sender ``publish``. A handoff between two stages of one
process has the last three only. Recording appends a tuple to a list; the lists are counted into
histograms when they are long or somebody asks.

Histograms only grow, so those of several processes add up, and the difference of two reports is
what happened between them.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pdv_mp.metrics.histogram import BUCKETS_PER_OCTAVE
from pdv_mp.wire.engine import Tokens
from pdv_mp.wire.frames import Stamps
from pdv_mp.workers.trace import EDGES, Trace

if TYPE_CHECKING:
    from pdv_mp.lanes.stamps import BatchStamps

COUNTS = ("messages", "bytes", "kv_bytes", "local")
"""What is counted of an edge."""

PARTS = ("encode", "wire", "decode", "inbox", "batch", "publish")
BUSY = "busy"
"""How much of ``wire`` the receiver spent on its last batch, and did not look at its messages."""

_ARRIVAL = (*PARTS[:3], BUSY)
_HERE = ""
_BESIDE = "beside"

SAMPLES_WAITING = 4096
"""Samples of one kind that wait to be counted."""

Buckets = Mapping[str, int]
"""Samples by the number of their bucket, as text: msgpack's maps have text keys."""


class Samples:
    """Samples of some parts that become known together, in ns."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        self._parts = parts
        self._waiting: list[tuple[int, ...]] = []
        self._buckets: list[dict[int, int]] = [{} for _ in parts]
        self._total_ns = [0 for _ in parts]

    def add(self, *nanoseconds: int) -> None:
        """One sample: a number for each part."""
        self._waiting.append(nanoseconds)
        if len(self._waiting) >= SAMPLES_WAITING:
            self._count()

    def _count(self) -> None:
        if not self._waiting:
            return
        columns = np.array(self._waiting, np.int64).T
        self._waiting.clear()
        for index, column in enumerate(columns):
            self._total_ns[index] += int(column.sum())
            found = self._buckets[index]
            for bucket, count in zip(
                *np.unique(bucket_of(column), return_counts=True), strict=True
            ):
                found[int(bucket)] = found.get(int(bucket), 0) + int(count)

    def as_dict(self) -> dict[str, Any]:
        """By part: ``total_ns`` and ``buckets``. Parts without a sample are missing."""
        self._count()
        return {
            part: {"total_ns": total, "buckets": {str(key): n for key, n in found.items()}}
            for part, total, found in zip(self._parts, self._total_ns, self._buckets, strict=True)
            if found
        }


class Handoff:
    """One edge of one process: counts and samples.

    ``messages``, ``bytes``: what was sent over it, to or from this process. ``kv_bytes``: keys and
    values that were copied for it, in messages or from memory that they name. ``local``: handoffs
    within this process.
    """

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self.kv_bytes = 0
        self.local = 0
        self.arrivals = Samples(_ARRIVAL)
        self.inboxes = Samples(("inbox",))
        self.batches = Samples(("batch",))
        self.publishes = Samples(("publish",))

    def as_dict(self) -> dict[str, Any]:
        """Counts, and ``parts`` by name."""
        parts: dict[str, Any] = {}
        for samples in (self.arrivals, self.inboxes, self.batches, self.publishes):
            parts.update(samples.as_dict())
        return {
            "messages": self.messages,
            "bytes": self.bytes,
            "kv_bytes": self.kv_bytes,
            "local": self.local,
            "parts": parts,
        }


class Handoffs:
    """The handoffs that one process knows of. ``trace``: where messages are traced, if they are."""

    def __init__(self) -> None:
        self.trace: Trace | None = None
        self._edges = {edge: Handoff() for edge in EDGES}
        self._waiting: dict[tuple[str, int], tuple[str, int]] = {}
        self._known_ns: dict[str, int] = {}
        self._last_order_ns: dict[str, int] = {}
        self._last_batch: dict[str, tuple[int, int]] = {}

    def __getitem__(self, edge: str) -> Handoff:
        return self._edges[edge]

    # ------------------------------------------------------------------ messages

    def received(
        self, edge: str, stamps: Stamps, replica: int = 0, *, beside: bool = False
    ) -> None:
        """A message came to this process. ``beside``: a thread received it, which no batch kept
        from doing so."""
        handoff = self._edges[edge]
        handoff.messages += 1
        handoff.bytes += stamps.size
        self._arrived(edge, stamps, replica, _BESIDE if beside else _HERE)

    def returned(self, edge: str, stamps: Stamps, batch: BatchStamps) -> None:
        """The results of a lane's batch came."""
        self.received(edge, stamps)
        self._edges[edge].publishes.add(stamps.encode_ns - batch.ended_ns)
        stage = edge.partition(">")[0]
        self._known_ns[stage] = stamps.decoded_ns
        self._last_batch[stage] = (batch.picked_ns, batch.ended_ns)

    def picked(self, edge: str, order: Stamps, batch: BatchStamps, busy_ns: int = 0) -> None:
        """A lane picked something that an order brought it; ``busy_ns`` of the time since then it
        had computed for others. An order of several parts has arrived once."""
        if order.encode_ns > self._last_order_ns.get(edge, 0):
            self._last_order_ns[edge] = order.encode_ns
            self._arrived(edge, order, lane=edge.partition(">")[2])
        self._edges[edge].inboxes.add(batch.picked_ns - busy_ns - order.decoded_ns)
        self._edges[edge].batches.add(batch.started_ns - batch.picked_ns)

    def _arrived(self, edge: str, stamps: Stamps, replica: int = 0, lane: str = _HERE) -> None:
        """A message was received by this process or by the lane of a stage, which may have been
        busy with its last batch when it was sent."""
        picked_ns, ended_ns = self._last_batch.get(lane, (0, 0))
        busy_ns = min(ended_ns, stamps.received_ns) - max(picked_ns, stamps.sent_ns)
        self._edges[edge].arrivals.add(
            stamps.sent_ns - stamps.encode_ns,
            stamps.received_ns - stamps.sent_ns,
            stamps.decoded_ns - stamps.received_ns,
            max(0, busy_ns),
        )
        if self.trace is not None:
            self.trace.message(edge, stamps, replica)

    def sent(self, edge: str, messages: int, num_bytes: int) -> None:
        """So many messages and bytes have been sent from this process since it started."""
        handoff = self._edges[edge]
        handoff.messages, handoff.bytes = messages, num_bytes

    def delivered(self, message: Tokens, taken_ns: int) -> None:
        """The front has dealt with the tokens of a message since ``taken_ns``."""
        ended_ns = time.monotonic_ns()
        self._last_batch[_HERE] = (taken_ns, ended_ns)
        self._edges["verify>front"].inboxes.add(taken_ns - message.stamps.decoded_ns)
        if self.trace is not None:
            stamps = (taken_ns, taken_ns, ended_ns)
            self.trace.batch("text", stamps, len(message.requests), len(message.ids))

    # ------------------------------------------------------------------ stages of this process

    def handed(self, edge: str, now: int) -> None:
        """Something has been handed to another stage of this process."""
        self._edges[edge].local += 1
        self.follows(edge, now)

    def waits(self, edge: str, now: int, group: int = 0) -> None:
        """What came over an edge is in the inbox of its stage here, and since ``now`` it waits for
        a batch of its group."""
        self._waiting[edge.partition(">")[2], group] = (edge, now)

    def begun(self, stage: str, picked_ns: int, started_ns: int, group: int = 0) -> None:
        """A batch of a stage of this process was picked from its inbox and started."""
        waiting = self._waiting.pop((stage, group), None)
        if waiting is not None:
            edge, since = waiting
            self._edges[edge].inboxes.add(picked_ns - since)
            self._edges[edge].batches.add(started_ns - picked_ns)

    def dropped(self, stage: str, group: int) -> None:
        """What waited in the inbox of a stage of this process is not for it after all."""
        waiting = self._waiting.pop((stage, group), None)
        if waiting is not None:
            self._edges[waiting[0]].local -= 1

    def ended(self, stage: str, picked_ns: int, ended_ns: int) -> None:
        """Its results are known."""
        self.busy(picked_ns, ended_ns)
        self._last_batch[_HERE] = (picked_ns, ended_ns)
        self._known_ns = {stage: ended_ns}

    def busy(self, since_ns: int, until_ns: int) -> None:
        """The worker could not pick anything: no part of a handoff for what waited meanwhile."""
        for other, (edge, since) in self._waiting.items():
            self._waiting[other] = (edge, since + until_ns - max(since_ns, since))

    def follows(self, edge: str, now: int) -> None:
        """What follows from results is on its way: its encoding starts. Nothing is recorded of
        results that a pause came after."""
        known = self._known_ns
        stage = edge.partition(">")[0]
        since = max(known.values(), default=0) if edge == "verify>front" else known.get(stage, 0)
        if since:
            self._edges[edge].publishes.add(now - since)

    def paused(self) -> None:
        """There is nothing to do until a message comes: what follows does so from that."""
        self._known_ns.clear()
        self._waiting.clear()

    # ------------------------------------------------------------------ questions

    def as_dict(self) -> dict[str, Any]:
        """By edge, those that are in use; the reports of several processes are summed."""
        return {
            edge: found
            for edge, handoff in self._edges.items()
            if (found := handoff.as_dict())["messages"] or found["local"] or found["parts"]
        }


def bucket_of(nanoseconds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of the bucket of each time; what is below 1 ns is in bucket 0."""
    exponent = np.log2(np.maximum(nanoseconds, 1))
    found: npt.NDArray[np.int64] = np.floor(exponent * BUCKETS_PER_OCTAVE).astype(np.int64)
    return found


def percentile(buckets: Buckets, percent: float) -> float:
    """The time in ns below which ``percent`` of the samples are: the middle of its bucket.

    Raises ValueError if there is no sample.
    """
    return percentiles(buckets, (percent,))[0]


def percentiles(buckets: Buckets, percents: Sequence[float]) -> list[float]:
    """:func:`percentile` for several, in rising order."""
    ordered = sorted((int(key), count) for key, count in buckets.items() if count > 0)
    if not ordered:
        raise ValueError("no sample")
    cumulative = list(accumulate(count for _, count in ordered))
    found = []
    for percent in percents:
        index = bisect_left(cumulative, percent / 100 * cumulative[-1])
        found.append(float(2 ** ((ordered[index][0] + 0.5) / BUCKETS_PER_OCTAVE)))
    return found


def report(edges: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``info.handoffs`` of docs/protocol.md: the summed reports of all processes, with percentiles
    in microseconds."""
    return {
        edge: {
            **{name: found[name] for name in COUNTS},
            "parts": {
                part: summary(found["parts"][part])
                for part in (*PARTS, BUSY)
                if part in found["parts"]
            },
        }
        for edge in EDGES
        if (found := edges.get(edge)) is not None
    }


def summary(part: Mapping[str, Any]) -> dict[str, Any]:
    """``n``, ``mean_us``, ``p50_us``, ``p99_us`` and what they come from."""
    buckets: Buckets = part["buckets"]
    samples = sum(buckets.values())
    half, most = percentiles(buckets, (50, 99))
    return {
        "n": samples,
        "mean_us": part["total_ns"] / samples / 1000,
        "p50_us": half / 1000,
        "p99_us": most / 1000,
        "total_ns": part["total_ns"],
        "buckets": dict(buckets),
    }


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The report of what happened between two reports of one server."""
    return report(combine([(after, 1), (before, -1)]))


def combine(reports: Iterable[tuple[Mapping[str, Any], int]]) -> dict[str, Any]:
    """Reports added up, each taken so many times. Parts that come out empty are missing, and so is
    what comes out negative: a process that was replaced has forgotten it."""
    edges: dict[str, Any] = {}
    for found, times in reports:
        for edge, handoff in found.items():
            total = edges.setdefault(edge, {**dict.fromkeys(COUNTS, 0), "parts": {}})
            for name in COUNTS:
                total[name] += times * handoff[name]
            for part, samples in handoff["parts"].items():
                sum_of = total["parts"].setdefault(part, {"total_ns": 0, "buckets": {}})
                sum_of["total_ns"] += times * samples["total_ns"]
                for bucket, count in samples["buckets"].items():
                    sum_of["buckets"][bucket] = sum_of["buckets"].get(bucket, 0) + times * count
    for handoff in edges.values():
        handoff["parts"] = {
            part: {"total_ns": max(0, samples["total_ns"]), "buckets": counted}
            for part, samples in handoff["parts"].items()
            if (counted := {key: n for key, n in samples["buckets"].items() if n > 0})
        }
    return edges
