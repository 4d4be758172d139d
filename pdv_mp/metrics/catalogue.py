"""Every metric: its name, meaning, labels, and what reads its values from ``info``.

Names and meanings of ``vllm:`` are vLLM's, so that what reads its metrics reads ours. What is ours
alone begins with ``pdv_``.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdv_mp.metrics import reading
from pdv_mp.metrics.reading import Labels, Read


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


VLLM: tuple[Metric, ...] = (
    Metric(
        "vllm:num_requests_running",
        "gauge",
        "Requests that hold a slot: being prefilled, waiting for a place in the batch, or in it.",
        reading.sum_of(*reading.RUNNING),
    ),
    Metric(
        "vllm:num_requests_waiting",
        "gauge",
        "Requests without a slot: being tokenized, or waiting in the front or the scheduler.",
        reading.sum_of(*reading.WAITING),
    ),
    Metric(
        "vllm:kv_cache_usage_perc",
        "gauge",
        "Share of the KV blocks that requests hold, 0 to 1.",
        reading.kv_usage,
    ),
    Metric(
        "vllm:prompt_tokens",
        "counter",
        "Prompt tokens of the requests that have got their first token.",
        reading.one("served", "prompt_tokens"),
    ),
    Metric(
        "vllm:generation_tokens",
        "counter",
        "Tokens delivered.",
        reading.one("served", "generation_tokens"),
    ),
    Metric(
        "vllm:prefix_cache_queries",
        "counter",
        "Prompt tokens that were looked up in the prefix cache.",
        reading.one("served", "prompt_tokens"),
    ),
    Metric(
        "vllm:prefix_cache_hits",
        "counter",
        "Prompt tokens that came from the prefix cache.",
        reading.one("served", "cached_tokens"),
    ),
    Metric(
        "vllm:num_preemptions",
        "counter",
        "Requests that lost their slot for want of KV room, and went on later.",
        reading.one("counters", "preemptions"),
    ),
    Metric(
        "vllm:request_success",
        "counter",
        "Requests that ended without an error, by reason.",
        reading.each("counters", "finished"),
        ("finished_reason",),
    ),
    Metric(
        "vllm:spec_decode_num_drafts",
        "counter",
        "Cycles of requests with at least one draft token. Mean acceptance length = 1 + accepted "
        "tokens / drafts, the verifier's own token included.",
        reading.cycle_total(0),
    ),
    Metric(
        "vllm:spec_decode_num_draft_tokens",
        "counter",
        "Draft tokens that were verified. Acceptance rate = accepted tokens / draft tokens.",
        reading.cycle_total(1),
    ),
    Metric(
        "vllm:spec_decode_num_accepted_tokens",
        "counter",
        "Draft tokens that were accepted, before any cut by a stop or max_tokens.",
        reading.cycle_total(2),
    ),
    Metric(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "counter",
        "Draft tokens that were accepted, by their position in the draft, from 0.",
        reading.per_position,
        ("position",),
    ),
    Metric(
        "vllm:time_to_first_token_seconds",
        "histogram",
        "From a request's arrival at the front to the text of its first token.",
        reading.latency("time_to_first_token"),
    ),
    Metric(
        "vllm:inter_token_latency_seconds",
        "histogram",
        "Between two deliveries of one request; with speculation one delivery has several tokens.",
        reading.latency("inter_token"),
    ),
    Metric(
        "vllm:request_time_per_output_token_seconds",
        "histogram",
        "Of a finished request: (last token - first token) / (tokens - 1).",
        reading.latency("time_per_output_token"),
    ),
    Metric(
        "vllm:e2e_request_latency_seconds",
        "histogram",
        "Of a finished request: from its arrival to its last message.",
        reading.latency("end_to_end"),
    ),
    Metric(
        "vllm:request_queue_time_seconds",
        "histogram",
        "Of a finished request: waiting for a credit in the front and a slot in the scheduler.",
        reading.latency("queue"),
    ),
    Metric(
        "vllm:request_prefill_time_seconds",
        "histogram",
        "Of a finished request: from its slot to its first token.",
        reading.latency("prefill"),
    ),
    Metric(
        "vllm:request_decode_time_seconds",
        "histogram",
        "Of a finished request: from its first token to its last.",
        reading.latency("decode"),
    ),
    Metric(
        "vllm:request_prompt_tokens",
        "histogram",
        "Prompt tokens of finished requests.",
        reading.tokens("prompt"),
    ),
    Metric(
        "vllm:request_generation_tokens",
        "histogram",
        "Output tokens of finished requests.",
        reading.tokens("generation"),
    ),
)

OURS: tuple[Metric, ...] = (
    Metric(
        "pdv_server_info",
        "gauge",
        "1; its labels say what is served. The instance is new at every start.",
        reading.server,
        ("version", "topology", "model", "draft_model", "device", "instance"),
    ),
    Metric(
        "pdv_open_requests",
        "gauge",
        "Requests that have not got their last message.",
        reading.one("counters", "open_requests"),
    ),
    Metric(
        "pdv_connections", "gauge", "Clients' connections.", reading.one("counters", "connections")
    ),
    Metric(
        "pdv_queue_depth",
        "gauge",
        "Requests by what they wait for: a tokenizer, a credit in the front, a slot in the "
        "scheduler, their prefill, or a place in the batch that is verified.",
        reading.queues,
        ("queue",),
    ),
    Metric(
        "pdv_request_errors",
        "counter",
        "Error messages to clients, by the code of docs/protocol.md.",
        reading.each("counters", "errors"),
        ("code",),
    ),
    Metric(
        "pdv_goodput_requests",
        "counter",
        "Finished requests that kept both --goodput-ttft-ms and --goodput-tpot-ms.",
        reading.one("served", "good_requests"),
    ),
    Metric(
        "pdv_slots",
        "gauge",
        "Requests that a replica can have admitted at once.",
        reading.replicas("pools", "slots"),
        ("replica",),
    ),
    Metric(
        "pdv_slots_in_use",
        "gauge",
        "Slots that requests hold.",
        reading.replicas("pools", "slots_in_use"),
        ("replica",),
    ),
    Metric(
        "pdv_kv_blocks",
        "gauge",
        "KV blocks: in_use by requests, cached for prompts to come, or free.",
        reading.blocks,
        ("replica", "state"),
    ),
    Metric(
        "pdv_draft_tokens_per_cycle",
        "histogram",
        "Draft tokens of a request's cycle; cycles without drafts are not counted.",
        reading.lengths("drafted_lengths"),
    ),
    Metric(
        "pdv_accepted_tokens_per_cycle",
        "histogram",
        "Accepted draft tokens of a request's cycle with drafts.",
        reading.lengths("accepted_lengths"),
    ),
    Metric(
        "pdv_draft_length",
        "gauge",
        "Draft length that the controller of a replica holds to be right at present.",
        reading.replicas("controller", "length"),
        ("replica",),
    ),
    Metric(
        "pdv_draft_acceptance_expected",
        "gauge",
        "Probability with which that controller expects a draft token to be kept.",
        reading.replicas("controller", "acceptance"),
        ("replica",),
    ),
    Metric(
        "pdv_draft_length_cycles",
        "counter",
        "Cycles of the batch by the draft length that was chosen for them.",
        reading.each("speculation", "lengths"),
        ("length",),
    ),
    Metric(
        "pdv_draft_controller_decisions",
        "counter",
        "Changes of the draft length (switches), cycles that drafted only to learn (explorations), "
        "lengths tried because their cost was not known (trials).",
        reading.decisions,
        ("decision",),
    ),
    Metric(
        "pdv_ahead_draft_tokens",
        "counter",
        "Tokens drafted ahead of a verdict (--draft-ahead).",
        reading.one("counters", "ahead_drafts"),
    ),
    Metric(
        "pdv_ahead_draft_hits",
        "counter",
        "Tokens drafted ahead that became drafts.",
        reading.one("counters", "ahead_hits"),
    ),
    Metric(
        "pdv_stale_proposals",
        "counter",
        "Proposals that came too late and were dropped.",
        reading.one("counters", "stale_proposals"),
    ),
    Metric(
        "pdv_stage_batches",
        "counter",
        "Batches that a stage ran.",
        reading.each("batch_totals", key="batches"),
        ("stage",),
    ),
    Metric(
        "pdv_stage_sequences",
        "counter",
        "Sequences of these batches; divided by the batches, the mean batch.",
        reading.each("batch_totals", key="sequences"),
        ("stage",),
    ),
    Metric(
        "pdv_stage_tokens",
        "counter",
        "Tokens fed in these batches; of the draft stage, tokens proposed.",
        reading.each("batch_totals", key="rows"),
        ("stage",),
    ),
    Metric(
        "pdv_stage_seconds",
        "counter",
        "Time of a stage: compute; batch, from picking it to its start; idle, when its process had "
        "computed nothing before the batch.",
        reading.stage_seconds,
        ("stage", "part"),
    ),
    Metric(
        "pdv_stage_forwards",
        "counter",
        "Forward passes; draft_prefill are the draft model's over prompts.",
        reading.forwards,
        ("stage",),
    ),
    Metric(
        "pdv_discarded_draft_tokens",
        "counter",
        "Draft tokens that a verification rejected.",
        reading.one("batch_totals", "verify", "discarded"),
    ),
    Metric(
        "pdv_handoff_seconds",
        "histogram",
        "What handing work over an edge took, by phase: encode, wire, decode, inbox, batch, "
        "publish, as docs/protocol.md defines them.",
        reading.handoffs,
        ("edge", "phase"),
    ),
    Metric(
        "pdv_handoff_busy_seconds",
        "counter",
        "How much of the phase wire the receiver spent on its last batch.",
        reading.busy,
        ("edge",),
    ),
    Metric(
        "pdv_edge_messages",
        "counter",
        "Messages sent over an edge.",
        reading.edges("messages"),
        ("edge",),
    ),
    Metric(
        "pdv_edge_bytes", "counter", "Bytes of these messages.", reading.edges("bytes"), ("edge",)
    ),
    Metric(
        "pdv_edge_kv_bytes",
        "counter",
        "Keys and values that were copied for an edge's handoffs.",
        reading.each("handoffs", key="kv_bytes"),
        ("edge",),
    ),
    Metric(
        "pdv_local_handoffs",
        "counter",
        "Handoffs between two stages of one process, by edge.",
        reading.each("handoffs", key="local"),
        ("edge",),
    ),
    Metric(
        "pdv_tokenizer_texts",
        "counter",
        "Texts that a tokenizer has answered.",
        reading.tokenizers("texts"),
        ("process",),
    ),
    Metric(
        "pdv_process_up",
        "gauge",
        "1 for a process that is there, 0 for one that is being replaced; 1 for gateway and "
        "metrics.",
        reading.up,
        ("process",),
    ),
    Metric(
        "pdv_process_restarts",
        "counter",
        "Deaths after which a process was started again. What falls with it is not counted.",
        reading.each("restarts"),
        ("process",),
    ),
    Metric(
        "pdv_process_cpu_seconds",
        "counter",
        "CPU time of a process, in all its threads.",
        reading.each("cpu", key="seconds"),
        ("process",),
    ),
    Metric(
        "pdv_process_threads",
        "gauge",
        "Threads of a process.",
        reading.each("cpu", key="threads"),
        ("process",),
    ),
    Metric(
        "pdv_process_resident_memory_bytes",
        "gauge",
        "Pages of a process that are in memory, shared ones included.",
        reading.each("memory", key="rss"),
        ("process",),
    ),
    Metric(
        "pdv_process_proportional_memory_bytes",
        "gauge",
        "The same with each page divided by the processes that have it: their sum counts it once.",
        reading.each("memory", key="pss"),
        ("process",),
    ),
    Metric(
        "pdv_process_private_memory_bytes",
        "gauge",
        "Pages that no other process has.",
        reading.each("memory", key="private"),
        ("process",),
    ),
    Metric(
        "pdv_process_gpu_memory_bytes",
        "gauge",
        "Memory of all GPUs that a process uses, where NVIDIA's driver tells.",
        reading.each("memory", key="vram"),
        ("process",),
    ),
    Metric(
        "pdv_gpu_utilization_ratio",
        "gauge",
        "Share of the last moments in which a GPU computed, whoever for, 0 to 1.",
        reading.gpus("utilisation"),
        ("gpu", "name"),
    ),
    Metric(
        "pdv_gpu_memory_used_bytes",
        "gauge",
        "Memory of a GPU that is used, by whomever.",
        reading.gpus("memory_used"),
        ("gpu", "name"),
    ),
    Metric(
        "pdv_gpu_memory_bytes",
        "gauge",
        "All memory of a GPU.",
        reading.gpus("memory_total"),
        ("gpu", "name"),
    ),
)

METRICS: tuple[Metric, ...] = (*VLLM, *OURS)
