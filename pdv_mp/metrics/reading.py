"""Where in ``info`` the values of metrics are: a function, or the maker of one, for each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdv_mp.metrics.histogram import BUCKETS_PER_OCTAVE

Info = Mapping[str, Any]

Labels = tuple[str, ...]

SECOND_NS = 1e9

HANDOFF_BOUNDS_LOG2_NS = tuple(range(13, 31))
"""From 2**13 ns, 8.2 µs, to 2**30 ns, 1.07 s: bounds between the buckets of ``info.handoffs``."""

DRAFT_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64)

PHASES = ("encode", "wire", "decode", "inbox", "batch", "publish")
"""The parts of a handoff; ``busy``, which is a part of ``wire``, has a counter of its own."""


@dataclass(frozen=True, slots=True)
class Value:
    """A number of a counter or a gauge, and the values of its labels."""

    labels: Labels
    value: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram: ``counts`` of each bucket, one more than ``bounds``, and the ``sum``."""

    labels: Labels
    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float


Read = Callable[[Info], Iterable[Value | Distribution]]


def _at(info: Any, *path: str) -> Any:
    """What is at a path of keys, None where one is missing."""
    for key in path:
        if not isinstance(info, Mapping) or key not in info:
            return None
        info = info[key]
    return info


def one(*path: str) -> Read:
    """The number at a path of keys."""

    def read(info: Info) -> Iterator[Value]:
        value = _at(info, *path)
        if value is not None:
            yield Value((), value)

    return read


def each(*path: str, key: str | None = None, scale: float = 1.0) -> Read:
    """The numbers of the map at a path, by name; with ``key`` those that its maps have there."""

    def read(info: Info) -> Iterator[Value]:
        for name, item in (_at(info, *path) or {}).items():
            value = item if key is None else item.get(key)
            if value is not None:
                yield Value((name,), value * scale)

    return read


def replicas(*path: str) -> Read:
    """The number at a path of each replica."""

    def read(info: Info) -> Iterator[Value]:
        for replica in info.get("replicas", ()):
            value = _at(replica, *path)
            if value is not None:
                yield Value((replica["process"],), value)

    return read


# ------------------------------------------------------------------ requests


def sum_of(*paths: tuple[str, ...]) -> Read:
    """The sum of the numbers at some paths; what is missing counts 0."""

    def read(info: Info) -> Iterator[Value]:
        yield Value((), sum(_at(info, *path) or 0 for path in paths))

    return read


RUNNING = (
    ("stages", "prefill", "prompts"),
    ("stages", "verify", "ready"),
    ("stages", "verify", "running"),
)
WAITING = (
    ("counters", "untokenized_requests"),
    ("counters", "waiting_requests"),
    ("stages", "prefill", "waiting"),
)
_QUEUES = {
    "tokenizer": ("counters", "untokenized_requests"),
    "front": ("counters", "waiting_requests"),
    "scheduler": ("stages", "prefill", "waiting"),
    "prefill": ("stages", "prefill", "prompts"),
    "verify": ("stages", "verify", "ready"),
}


def queues(info: Info) -> Iterator[Value]:
    """Requests by what they wait for."""
    for name, path in _QUEUES.items():
        value = _at(info, *path)
        if value is not None:
            yield Value((name,), value)


def kv_usage(info: Info) -> Iterator[Value]:
    """The share of all blocks that requests hold."""
    blocks = _at(info, "pools", "blocks")
    if blocks:
        yield Value((), info["pools"]["blocks_in_use"] / blocks)


def blocks(info: Info) -> Iterator[Value]:
    """Blocks of each replica by their state."""
    for replica in info.get("replicas", ()):
        for state in ("in_use", "cached", "free"):
            value = _at(replica, "pools", f"blocks_{state}")
            if value is not None:
                yield Value((replica["process"], state), value)


def latency(name: str) -> Read:
    """One of ``info.served``'s latencies, in s."""

    def read(info: Info) -> Iterator[Distribution]:
        found = _at(info, "served", "latencies", name)
        if found is not None:
            bounds = [bound / SECOND_NS for bound in info["served"]["latency_bounds_ns"]]
            yield Distribution((), bounds, found["counts"], found["sum"] / SECOND_NS)

    return read


def tokens(name: str) -> Read:
    """One of ``info.served``'s histograms of tokens."""

    def read(info: Info) -> Iterator[Distribution]:
        found = _at(info, "served", "tokens", name)
        if found is not None:
            yield Distribution((), info["served"]["token_bounds"], found["counts"], found["sum"])

    return read


# ------------------------------------------------------------------ speculation


def cycles(info: Info) -> tuple[int, int, int]:
    """Cycles with drafts, their draft tokens, and those of them that were accepted."""
    drafted = _at(info, "served", "drafted_lengths") or []
    accepted = _at(info, "served", "accepted_lengths") or []
    return (
        sum(drafted),
        sum(length * count for length, count in enumerate(drafted)),
        sum(length * count for length, count in enumerate(accepted)),
    )


def cycle_total(index: int) -> Read:
    """One of :func:`cycles`."""

    def read(info: Info) -> Iterator[Value]:
        yield Value((), cycles(info)[index])

    return read


def per_position(info: Info) -> Iterator[Value]:
    """Positions up to the longest draft that may be chosen, or was."""
    accepted = _at(info, "served", "accepted_lengths") or []
    drafted = _at(info, "served", "drafted_lengths") or []
    longest = max((length for length, count in enumerate(drafted) if count), default=0)
    for position in range(max(longest, _longest_configured(info))):
        yield Value((str(position),), sum(accepted[position + 1 :]))


def _longest_configured(info: Info) -> int:
    options = _at(info, "configuration", "speculation") or {}
    length = options.get("num_speculative_tokens", 0)
    longest: int = options.get("max_speculative_tokens", 0) if length == "auto" else length
    return longest


def lengths(name: str) -> Read:
    """One of ``info.served``'s lists of cycles by a length."""

    def read(info: Info) -> Iterator[Distribution]:
        counts = _at(info, "served", name)
        if counts is None:
            return
        buckets, low = [], 0
        for bound in DRAFT_LENGTHS:
            buckets.append(sum(counts[low : bound + 1]))
            low = bound + 1
        total = sum(length * count for length, count in enumerate(counts))
        yield Distribution((), DRAFT_LENGTHS, [*buckets, sum(counts[low:])], total)

    return read


def decisions(info: Info) -> Iterator[Value]:
    """What the draft lengths' controllers have decided."""
    for name in ("switches", "explorations", "trials"):
        value = _at(info, "speculation", name)
        if value is not None:
            yield Value((name,), value)


# ------------------------------------------------------------------ stages and edges


def stage_seconds(info: Info) -> Iterator[Value]:
    """The time of each stage by its parts."""
    for stage, totals in (info.get("batch_totals") or {}).items():
        for part in ("compute", "batch", "idle"):
            yield Value((stage, part), totals[f"{part}_ns"] / SECOND_NS)


def forwards(info: Info) -> Iterator[Value]:
    """Forward passes by stage."""
    for stage in ("prefill", "draft_prefill", "draft", "verify"):
        value = _at(info, "counters", f"{stage}_forwards")
        if value is not None:
            yield Value((stage,), value)


def handoffs(info: Info) -> Iterator[Distribution]:
    """What handing over took, by edge and phase."""
    bounds = [2**log2 / SECOND_NS for log2 in HANDOFF_BOUNDS_LOG2_NS]
    for edge, handoff in (info.get("handoffs") or {}).items():
        for phase in PHASES:
            part = handoff["parts"].get(phase)
            if part is not None:
                counts = rebinned(part["buckets"], HANDOFF_BOUNDS_LOG2_NS)
                yield Distribution((edge, phase), bounds, counts, part["total_ns"] / SECOND_NS)


def rebinned(buckets: Mapping[str, int], bounds_log2: Sequence[int]) -> list[int]:
    """The samples of ``info.handoffs``' fine buckets between these powers of two of ns, and above
    the last. No bucket is divided, so nothing is estimated."""
    counts = [0] * (len(bounds_log2) + 1)
    for bucket, count in buckets.items():
        octave = int(bucket) // BUCKETS_PER_OCTAVE  # a sample there is below 2 ** (octave + 1)
        index = min(max(octave + 1 - bounds_log2[0], 0), len(bounds_log2))
        counts[index] += count
    return counts


def busy(info: Info) -> Iterator[Value]:
    """How long receivers were busy with their last batch, by edge."""
    for edge, handoff in (info.get("handoffs") or {}).items():
        part = handoff["parts"].get("busy")
        if part is not None:
            yield Value((edge,), part["total_ns"] / SECOND_NS)


def edges(name: str) -> Read:
    """Of the edges between processes, and of those to and from clients."""

    def read(info: Info) -> Iterator[Value]:
        for edge, handoff in (info.get("handoffs") or {}).items():
            yield Value((edge,), handoff[name])
        for edge in info.get("edges", ()):
            if "client" in edge["name"]:
                yield Value((edge["name"],), edge[name])

    return read


# ------------------------------------------------------------------ processes and GPUs


def up(info: Info) -> Iterator[Value]:
    """Which processes are there."""
    away = set(info.get("away", ()))
    for name in sorted({*(info.get("cpu") or {}), *(info.get("processes") or {}), *away}):
        yield Value((name,), float(name not in away))


def gpus(key: str) -> Read:
    """A number of each GPU."""

    def read(info: Info) -> Iterator[Value]:
        for gpu in info.get("gpus", ()):
            if key in gpu:
                yield Value((str(gpu["index"]), gpu["name"]), gpu[key])

    return read


def server(info: Info) -> Iterator[Value]:
    """What is served."""
    facts = info.get("facts") or {}
    names = (info.get("version"), info.get("topology"), facts.get("model"))
    others = (facts.get("draft_model"), facts.get("device"), info.get("instance"))
    yield Value(tuple(str(name or "") for name in (*names, *others)), 1)


def tokenizers(key: str) -> Read:
    """A number of each process that tokenizes."""

    def read(info: Info) -> Iterator[Value]:
        for tokenizer in info.get("tokenizers", ()):
            yield Value((tokenizer["process"],), tokenizer[key])

    return read
