"""Every metric: its name, meaning, labels, and where in ``info`` its values come from.

Names and meanings of ``vllm:`` are vLLM's, so that what reads its metrics reads ours. What is ours
alone begins with ``pdv_``.
"""

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


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. ``kind``: counter, gauge or histogram; ``read`` gives its samples, none where the
    server does not say. A counter's name lacks the ``_total`` that it is shown with."""

    name: str
    kind: str
    help: str
    read: Read
    labels: Labels = ()

    @property
    def shown_name(self) -> str:
        """The name with what the text format adds to it."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


def _at(info: Any, *path: str) -> Any:
    """What is at a path of keys, None where one is missing."""
    for key in path:
        if not isinstance(info, Mapping) or key not in info:
            return None
        info = info[key]
    return info


def _one(*path: str) -> Read:
    """The number at a path of keys."""

    def read(info: Info) -> Iterator[Value]:
        value = _at(info, *path)
        if value is not None:
            yield Value((), value)

    return read


def _each(*path: str, key: str | None = None, scale: float = 1.0) -> Read:
    """The numbers of the map at a path, by name; with ``key`` those that its maps have there."""

    def read(info: Info) -> Iterator[Value]:
        for name, item in (_at(info, *path) or {}).items():
            value = item if key is None else item.get(key)
            if value is not None:
                yield Value((name,), value * scale)

    return read


def _replicas(*path: str) -> Read:
    """The number at a path of each replica."""

    def read(info: Info) -> Iterator[Value]:
        for replica in info.get("replicas", ()):
            value = _at(replica, *path)
            if value is not None:
                yield Value((replica["process"],), value)

    return read


# ------------------------------------------------------------------ requests


def _sum_of(*paths: tuple[str, ...]) -> Read:
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


def _queues(info: Info) -> Iterator[Value]:
    for name, path in _QUEUES.items():
        value = _at(info, *path)
        if value is not None:
            yield Value((name,), value)


def _kv_usage(info: Info) -> Iterator[Value]:
    blocks = _at(info, "pools", "blocks")
    if blocks:
        yield Value((), info["pools"]["blocks_in_use"] / blocks)


def _blocks(info: Info) -> Iterator[Value]:
    for replica in info.get("replicas", ()):
        for state in ("in_use", "cached", "free"):
            value = _at(replica, "pools", f"blocks_{state}")
            if value is not None:
                yield Value((replica["process"], state), value)


def _latency(name: str) -> Read:
    def read(info: Info) -> Iterator[Distribution]:
        found = _at(info, "served", "latencies", name)
        if found is not None:
            bounds = [bound / SECOND_NS for bound in info["served"]["latency_bounds_ns"]]
            yield Distribution((), bounds, found["counts"], found["sum"] / SECOND_NS)

    return read


def _tokens(name: str) -> Read:
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


def _cycles(index: int) -> Read:
    def read(info: Info) -> Iterator[Value]:
        yield Value((), cycles(info)[index])

    return read


def _per_position(info: Info) -> Iterator[Value]:
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


def _lengths(name: str) -> Read:
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


def _decisions(info: Info) -> Iterator[Value]:
    for name in ("switches", "explorations", "trials"):
        value = _at(info, "speculation", name)
        if value is not None:
            yield Value((name,), value)


# ------------------------------------------------------------------ stages and edges


def _stage_seconds(info: Info) -> Iterator[Value]:
    for stage, totals in (info.get("batch_totals") or {}).items():
        for part in ("compute", "batch", "idle"):
            yield Value((stage, part), totals[f"{part}_ns"] / SECOND_NS)


def _forwards(info: Info) -> Iterator[Value]:
    for stage in ("prefill", "draft_prefill", "draft", "verify"):
        value = _at(info, "counters", f"{stage}_forwards")
        if value is not None:
            yield Value((stage,), value)


def _handoffs(info: Info) -> Iterator[Distribution]:
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


def _busy(info: Info) -> Iterator[Value]:
    for edge, handoff in (info.get("handoffs") or {}).items():
        part = handoff["parts"].get("busy")
        if part is not None:
            yield Value((edge,), part["total_ns"] / SECOND_NS)


def _edges(name: str) -> Read:
    """Of the edges between processes, and of those to and from clients."""

    def read(info: Info) -> Iterator[Value]:
        for edge, handoff in (info.get("handoffs") or {}).items():
            yield Value((edge,), handoff[name])
        for edge in info.get("edges", ()):
            if "client" in edge["name"]:
                yield Value((edge["name"],), edge[name])

    return read


# ------------------------------------------------------------------ processes and GPUs


def _up(info: Info) -> Iterator[Value]:
    away = set(info.get("away", ()))
    for name in sorted({*(info.get("cpu") or {}), *(info.get("processes") or {}), *away}):
        yield Value((name,), float(name not in away))


def _gpus(key: str) -> Read:
    def read(info: Info) -> Iterator[Value]:
        for gpu in info.get("gpus", ()):
            if key in gpu:
                yield Value((str(gpu["index"]), gpu["name"]), gpu[key])

    return read


def _server(info: Info) -> Iterator[Value]:
    facts = info.get("facts") or {}
    names = (info.get("version"), info.get("topology"), facts.get("model"))
    others = (facts.get("draft_model"), facts.get("device"), info.get("instance"))
    yield Value(tuple(str(name or "") for name in (*names, *others)), 1)


def _tokenizers(key: str) -> Read:
    def read(info: Info) -> Iterator[Value]:
        for tokenizer in info.get("tokenizers", ()):
            yield Value((tokenizer["process"],), tokenizer[key])

    return read


VLLM: tuple[Metric, ...] = (
    Metric(
        "vllm:num_requests_running",
        "gauge",
        "Requests that hold a slot: being prefilled, waiting for a place in the batch, or in it.",
        _sum_of(*RUNNING),
    ),
    Metric(
        "vllm:num_requests_waiting",
        "gauge",
        "Requests without a slot: being tokenized, or waiting in the front or the scheduler.",
        _sum_of(*WAITING),
    ),
    Metric(
        "vllm:kv_cache_usage_perc",
        "gauge",
        "Share of the KV blocks that requests hold, 0 to 1.",
        _kv_usage,
    ),
    Metric(
        "vllm:prompt_tokens",
        "counter",
        "Prompt tokens of the requests that have got their first token.",
        _one("served", "prompt_tokens"),
    ),
    Metric(
        "vllm:generation_tokens",
        "counter",
        "Tokens delivered.",
        _one("served", "generation_tokens"),
    ),
    Metric(
        "vllm:prefix_cache_queries",
        "counter",
        "Prompt tokens that were looked up in the prefix cache.",
        _one("served", "prompt_tokens"),
    ),
    Metric(
        "vllm:prefix_cache_hits",
        "counter",
        "Prompt tokens that came from the prefix cache.",
        _one("served", "cached_tokens"),
    ),
    Metric(
        "vllm:num_preemptions",
        "counter",
        "Requests that lost their slot for want of KV room, and went on later.",
        _one("counters", "preemptions"),
    ),
    Metric(
        "vllm:request_success",
        "counter",
        "Requests that ended without an error, by reason.",
        _each("counters", "finished"),
        ("finished_reason",),
    ),
    Metric(
        "vllm:spec_decode_num_drafts",
        "counter",
        "Cycles of requests with at least one draft token. Mean acceptance length = 1 + accepted "
        "tokens / drafts, the verifier's own token included.",
        _cycles(0),
    ),
    Metric(
        "vllm:spec_decode_num_draft_tokens",
        "counter",
        "Draft tokens that were verified. Acceptance rate = accepted tokens / draft tokens.",
        _cycles(1),
    ),
    Metric(
        "vllm:spec_decode_num_accepted_tokens",
        "counter",
        "Draft tokens that were accepted, before any cut by a stop or max_tokens.",
        _cycles(2),
    ),
    Metric(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "counter",
        "Draft tokens that were accepted, by their position in the draft, from 0.",
        _per_position,
        ("position",),
    ),
    Metric(
        "vllm:time_to_first_token_seconds",
        "histogram",
        "From a request's arrival at the front to the text of its first token.",
        _latency("time_to_first_token"),
    ),
    Metric(
        "vllm:inter_token_latency_seconds",
        "histogram",
        "Between two deliveries of one request; with speculation one delivery has several tokens.",
        _latency("inter_token"),
    ),
    Metric(
        "vllm:request_time_per_output_token_seconds",
        "histogram",
        "Of a finished request: (last token - first token) / (tokens - 1).",
        _latency("time_per_output_token"),
    ),
    Metric(
        "vllm:e2e_request_latency_seconds",
        "histogram",
        "Of a finished request: from its arrival to its last message.",
        _latency("end_to_end"),
    ),
    Metric(
        "vllm:request_queue_time_seconds",
        "histogram",
        "Of a finished request: waiting for a credit in the front and a slot in the scheduler.",
        _latency("queue"),
    ),
    Metric(
        "vllm:request_prefill_time_seconds",
        "histogram",
        "Of a finished request: from its slot to its first token.",
        _latency("prefill"),
    ),
    Metric(
        "vllm:request_decode_time_seconds",
        "histogram",
        "Of a finished request: from its first token to its last.",
        _latency("decode"),
    ),
    Metric(
        "vllm:request_prompt_tokens",
        "histogram",
        "Prompt tokens of finished requests.",
        _tokens("prompt"),
    ),
    Metric(
        "vllm:request_generation_tokens",
        "histogram",
        "Output tokens of finished requests.",
        _tokens("generation"),
    ),
)

OURS: tuple[Metric, ...] = (
    Metric(
        "pdv_server_info",
        "gauge",
        "1; its labels say what is served. The instance is new at every start.",
        _server,
        ("version", "topology", "model", "draft_model", "device", "instance"),
    ),
    Metric(
        "pdv_open_requests",
        "gauge",
        "Requests that have not got their last message.",
        _one("counters", "open_requests"),
    ),
    Metric("pdv_connections", "gauge", "Clients' connections.", _one("counters", "connections")),
    Metric(
        "pdv_queue_depth",
        "gauge",
        "Requests by what they wait for: a tokenizer, a credit in the front, a slot in the "
        "scheduler, their prefill, or a place in the batch that is verified.",
        _queues,
        ("queue",),
    ),
    Metric(
        "pdv_request_errors",
        "counter",
        "Error messages to clients, by the code of docs/protocol.md.",
        _each("counters", "errors"),
        ("code",),
    ),
    Metric(
        "pdv_goodput_requests",
        "counter",
        "Finished requests that kept both --goodput-ttft-ms and --goodput-tpot-ms.",
        _one("served", "good_requests"),
    ),
    Metric(
        "pdv_slots",
        "gauge",
        "Requests that a replica can have admitted at once.",
        _replicas("pools", "slots"),
        ("replica",),
    ),
    Metric(
        "pdv_slots_in_use",
        "gauge",
        "Slots that requests hold.",
        _replicas("pools", "slots_in_use"),
        ("replica",),
    ),
    Metric(
        "pdv_kv_blocks",
        "gauge",
        "KV blocks: in_use by requests, cached for prompts to come, or free.",
        _blocks,
        ("replica", "state"),
    ),
    Metric(
        "pdv_draft_tokens_per_cycle",
        "histogram",
        "Draft tokens of a request's cycle; cycles without drafts are not counted.",
        _lengths("drafted_lengths"),
    ),
    Metric(
        "pdv_accepted_tokens_per_cycle",
        "histogram",
        "Accepted draft tokens of a request's cycle with drafts.",
        _lengths("accepted_lengths"),
    ),
    Metric(
        "pdv_draft_length",
        "gauge",
        "Draft length that the controller of a replica holds to be right at present.",
        _replicas("controller", "length"),
        ("replica",),
    ),
    Metric(
        "pdv_draft_acceptance_expected",
        "gauge",
        "Probability with which that controller expects a draft token to be kept.",
        _replicas("controller", "acceptance"),
        ("replica",),
    ),
    Metric(
        "pdv_draft_length_cycles",
        "counter",
        "Cycles of the batch by the draft length that was chosen for them.",
        _each("speculation", "lengths"),
        ("length",),
    ),
    Metric(
        "pdv_draft_controller_decisions",
        "counter",
        "Changes of the draft length (switches), cycles that drafted only to learn (explorations), "
        "lengths tried because their cost was not known (trials).",
        _decisions,
        ("decision",),
    ),
    Metric(
        "pdv_ahead_draft_tokens",
        "counter",
        "Tokens drafted ahead of a verdict (--draft-ahead).",
        _one("counters", "ahead_drafts"),
    ),
    Metric(
        "pdv_ahead_draft_hits",
        "counter",
        "Tokens drafted ahead that became drafts.",
        _one("counters", "ahead_hits"),
    ),
    Metric(
        "pdv_stale_proposals",
        "counter",
        "Proposals that came too late and were dropped.",
        _one("counters", "stale_proposals"),
    ),
    Metric(
        "pdv_stage_batches",
        "counter",
        "Batches that a stage ran.",
        _each("batch_totals", key="batches"),
        ("stage",),
    ),
    Metric(
        "pdv_stage_sequences",
        "counter",
        "Sequences of these batches; divided by the batches, the mean batch.",
        _each("batch_totals", key="sequences"),
        ("stage",),
    ),
    Metric(
        "pdv_stage_tokens",
        "counter",
        "Tokens fed in these batches; of the draft stage, tokens proposed.",
        _each("batch_totals", key="rows"),
        ("stage",),
    ),
    Metric(
        "pdv_stage_seconds",
        "counter",
        "Time of a stage: compute; batch, from picking it to its start; idle, when its process had "
        "computed nothing before the batch.",
        _stage_seconds,
        ("stage", "part"),
    ),
    Metric(
        "pdv_stage_forwards",
        "counter",
        "Forward passes; draft_prefill are the draft model's over prompts.",
        _forwards,
        ("stage",),
    ),
    Metric(
        "pdv_discarded_draft_tokens",
        "counter",
        "Draft tokens that a verification rejected.",
        _one("batch_totals", "verify", "discarded"),
    ),
    Metric(
        "pdv_handoff_seconds",
        "histogram",
        "What handing work over an edge took, by phase: encode, wire, decode, inbox, batch, "
        "publish, as docs/protocol.md defines them.",
        _handoffs,
        ("edge", "phase"),
    ),
    Metric(
        "pdv_handoff_busy_seconds",
        "counter",
        "How much of the phase wire the receiver spent on its last batch.",
        _busy,
        ("edge",),
    ),
    Metric(
        "pdv_edge_messages", "counter", "Messages sent over an edge.", _edges("messages"), ("edge",)
    ),
    Metric("pdv_edge_bytes", "counter", "Bytes of these messages.", _edges("bytes"), ("edge",)),
    Metric(
        "pdv_edge_kv_bytes",
        "counter",
        "Keys and values that were copied for an edge's handoffs.",
        _each("handoffs", key="kv_bytes"),
        ("edge",),
    ),
    Metric(
        "pdv_local_handoffs",
        "counter",
        "Handoffs between two stages of one process, by edge.",
        _each("handoffs", key="local"),
        ("edge",),
    ),
    Metric(
        "pdv_tokenizer_texts",
        "counter",
        "Texts that a tokenizer has answered.",
        _tokenizers("texts"),
        ("process",),
    ),
    Metric(
        "pdv_process_up",
        "gauge",
        "1 for a process that is there, 0 for one that is being replaced.",
        _up,
        ("process",),
    ),
    Metric(
        "pdv_process_restarts",
        "counter",
        "Deaths after which a process was started again. What falls with it is not counted.",
        _each("restarts"),
        ("process",),
    ),
    Metric(
        "pdv_process_cpu_seconds",
        "counter",
        "CPU time of a process, in all its threads.",
        _each("cpu", key="seconds"),
        ("process",),
    ),
    Metric(
        "pdv_process_threads",
        "gauge",
        "Threads of a process.",
        _each("cpu", key="threads"),
        ("process",),
    ),
    Metric(
        "pdv_process_resident_memory_bytes",
        "gauge",
        "Pages of a process that are in memory, shared ones included.",
        _each("memory", key="rss"),
        ("process",),
    ),
    Metric(
        "pdv_process_proportional_memory_bytes",
        "gauge",
        "The same with each page divided by the processes that have it: their sum counts it once.",
        _each("memory", key="pss"),
        ("process",),
    ),
    Metric(
        "pdv_process_private_memory_bytes",
        "gauge",
        "Pages that no other process has.",
        _each("memory", key="private"),
        ("process",),
    ),
    Metric(
        "pdv_process_gpu_memory_bytes",
        "gauge",
        "Memory of all GPUs that a process uses, where NVIDIA's driver tells.",
        _each("memory", key="vram"),
        ("process",),
    ),
    Metric(
        "pdv_gpu_utilization_ratio",
        "gauge",
        "Share of the last moments in which a GPU computed, whoever for, 0 to 1.",
        _gpus("utilisation"),
        ("gpu", "name"),
    ),
    Metric(
        "pdv_gpu_memory_used_bytes",
        "gauge",
        "Memory of a GPU that is used, by whomever.",
        _gpus("memory_used"),
        ("gpu", "name"),
    ),
    Metric(
        "pdv_gpu_memory_bytes",
        "gauge",
        "All memory of a GPU.",
        _gpus("memory_total"),
        ("gpu", "name"),
    ),
)

METRICS: tuple[Metric, ...] = (*VLLM, *OURS)
