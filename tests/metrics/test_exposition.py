"""Prometheus' text, made from ``info`` and read by Prometheus' own parser."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from pdv_mp.metrics.catalogue import METRICS
from pdv_mp.metrics.exposition import exposition
from pdv_mp.metrics.histogram import LATENCY_BOUNDS_NS
from pdv_mp.metrics.reading import HANDOFF_BOUNDS_LOG2_NS, cycles, rebinned
from pdv_mp.workers.handoffs import bucket_of


def families(info: dict[str, Any]) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(exposition(info))}


def samples(info: dict[str, Any], name: str) -> dict[tuple[str, ...], float]:
    """Values by those labels that are not vLLM's common ones, in the order of their names."""
    found = {}
    for family in families(info).values():
        for sample in family.samples:
            if sample.name == name:
                labels = {
                    key: value
                    for key, value in sample.labels.items()
                    if key not in ("engine", "model_name")
                }
                found[tuple(labels[key] for key in sorted(labels))] = sample.value
    return found


SERVED: dict[str, Any] = {
    "prompt_tokens": 20,
    "generation_tokens": 30,
    "cached_tokens": 4,
    "good_requests": 2,
    # Three cycles: 4 drafted and 4 kept, 4 drafted and 1 kept, 2 drafted and none kept.
    "drafted_lengths": [0, 0, 1, 0, 2],
    "accepted_lengths": [1, 1, 0, 0, 1],
}


def test_names_and_texts_are_those_of_a_catalogue() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert metric.name.startswith(("vllm:", "pdv_"))
        assert metric.kind in ("counter", "gauge", "histogram")
        assert metric.help.endswith(".")


@pytest.mark.parametrize("info", [{}, {"facts": {"model": 'a "name" with\\ all\nin it'}}])
def test_a_server_that_says_nothing_has_families_without_errors(info: dict[str, Any]) -> None:
    found = families(info)
    assert set(found) == {metric.name for metric in METRICS}
    for sample in found["vllm:num_requests_running"].samples:
        assert sample.labels["model_name"] == info.get("facts", {}).get("model", "")
        assert sample.value == 0


def test_speculation_has_the_counters_of_vllm() -> None:
    info = {"served": SERVED, "configuration": {"speculation": {"num_speculative_tokens": 6}}}
    assert cycles(info) == (3, 10, 5)
    assert samples(info, "vllm:spec_decode_num_drafts_total") == {(): 3}
    assert samples(info, "vllm:spec_decode_num_draft_tokens_total") == {(): 10}
    assert samples(info, "vllm:spec_decode_num_accepted_tokens_total") == {(): 5}
    per_position = samples(info, "vllm:spec_decode_num_accepted_tokens_per_pos_total")
    assert per_position == {("0",): 2, ("1",): 1, ("2",): 1, ("3",): 1, ("4",): 0, ("5",): 0}
    assert samples(info, "pdv_draft_tokens_per_cycle_sum") == {(): 10}
    buckets = samples(info, "pdv_accepted_tokens_per_cycle_bucket")
    assert [buckets[(bound,)] for bound in ("0.0", "1.0", "3.0", "4.0", "+Inf")] == [1, 2, 2, 3, 3]


def read_as_vllm_does(text: str) -> dict[str, Any]:
    """Drafts, draft tokens and accepted ones, as vLLM's load generator picks them out of lines."""
    found: dict[str, Any] = {"drafts": 0, "tokens": 0, "accepted": 0, "positions": {}}
    for line in text.splitlines():
        if not line.startswith("vllm:spec_decode"):
            continue
        value = int(float(line.split()[-1]))
        if "num_drafts" in line:
            found["drafts"] += value
        elif "num_draft_tokens" in line:
            found["tokens"] += value
        elif "num_accepted_tokens_per_pos" in line:
            position = int(line.split('position="')[1].split('"')[0])
            found["positions"][position] = value
        elif "num_accepted_tokens" in line:
            found["accepted"] += value
    return found


def test_a_reader_of_lines_finds_acceptance() -> None:
    info = {"served": SERVED, "facts": {"model": "a model with spaces"}}
    assert read_as_vllm_does(exposition(info)) == {
        "drafts": 3,
        "tokens": 10,
        "accepted": 5,
        "positions": {0: 2, 1: 1, 2: 1, 3: 1},
    }


def test_histograms_are_cumulative_and_in_seconds() -> None:
    counts = [0] * (len(LATENCY_BOUNDS_NS) + 1)
    counts[0], counts[6], counts[-1] = 1, 2, 3
    latencies = {"time_to_first_token": {"counts": counts, "sum": 5e9}}
    info = {"served": {"latency_bounds_ns": list(LATENCY_BOUNDS_NS), "latencies": latencies}}
    name = "vllm:time_to_first_token_seconds"
    buckets = samples(info, f"{name}_bucket")
    assert [buckets[(le,)] for le in ("0.0001", "0.0007", "0.001", "1000.0", "+Inf")] == [
        *(1, 1, 3, 3, 6)
    ]
    assert samples(info, f"{name}_count") == {(): 6}
    assert samples(info, f"{name}_sum") == {(): 5.0}


def test_handoffs_keep_every_sample_on_its_side_of_every_bound() -> None:
    times = np.array([1, 8191, 8192, 16383, 16384, 10**6, 2**30 - 1, 2**30, 10**12], np.int64)
    buckets: dict[str, int] = {}
    for bucket in bucket_of(times):
        buckets[str(bucket)] = buckets.get(str(bucket), 0) + 1
    counts = np.cumsum(rebinned(buckets, HANDOFF_BOUNDS_LOG2_NS))
    below = [int((times < 2**log2).sum()) for log2 in HANDOFF_BOUNDS_LOG2_NS]
    assert counts.tolist() == [*below, len(times)]

    parts = {
        "wire": {"buckets": buckets, "total_ns": 3 * 10**9},
        "busy": {"buckets": buckets, "total_ns": 10**9},
    }
    edge = {"messages": 9, "bytes": 90, "kv_bytes": 0, "local": 0, "parts": parts}
    clients = {"name": "front>client", "messages": 1, "bytes": 2, "endpoints": []}
    others = {"name": "front>verify", "messages": 5, "bytes": 5, "endpoints": []}
    info = {"handoffs": {"draft>verify": edge}, "edges": [clients, others]}
    labels = ("draft>verify", "wire")
    assert samples(info, "pdv_handoff_seconds_count") == {labels: 9}
    assert samples(info, "pdv_handoff_seconds_sum") == {labels: 3.0}
    assert samples(info, "pdv_handoff_busy_seconds_total") == {("draft>verify",): 1.0}
    expected = {("draft>verify",): 9, ("front>client",): 1}
    assert samples(info, "pdv_edge_messages_total") == expected


def test_replicas_processes_and_gpus_have_their_names() -> None:
    pools = {"blocks_in_use": 3, "blocks_cached": 2, "blocks_free": 5, "slots": 4}
    replica = {"process": "worker-1", "pools": pools, "controller": {"length": 4}}
    gpu = {"index": 0, "name": "A GPU", "memory_used": 5, "memory_total": 10}
    info = {
        "replicas": [replica, {"process": "worker-0", "pools": {}, "controller": {}}],
        "pools": {"blocks": 10, "blocks_in_use": 3},
        "processes": {"front": 1},
        "away": ["worker-0"],
        "cpu": {"front": {"pid": 1, "seconds": 1.5, "threads": 2}},
        "memory": {"front": {"rss": 7, "pss": 6, "private": 5}},
        "restarts": {"worker-0": 1},
        "counters": {"draft_forwards": 8, "draft_prefill_forwards": 2},
        "gpus": [gpu],
    }
    assert samples(info, "vllm:kv_cache_usage_perc") == {(): 0.3}
    blocks = {("worker-1", state): pools[f"blocks_{state}"] for state in ("in_use", "cached")}
    assert samples(info, "pdv_kv_blocks").items() >= blocks.items()
    assert samples(info, "pdv_draft_length") == {("worker-1",): 4}
    assert samples(info, "pdv_process_up") == {("front",): 1, ("worker-0",): 0}
    assert samples(info, "pdv_process_cpu_seconds_total") == {("front",): 1.5}
    assert samples(info, "pdv_process_proportional_memory_bytes") == {("front",): 6}
    assert samples(info, "pdv_process_restarts_total") == {("worker-0",): 1}
    forwards = {("draft",): 8, ("draft_prefill",): 2}
    assert samples(info, "pdv_stage_forwards_total") == forwards
    assert samples(info, "pdv_gpu_memory_bytes") == {("0", "A GPU"): 10}
    assert samples(info, "pdv_gpu_utilization_ratio") == {}, "a slice does not tell"
    assert not any(math.isnan(value) for value in samples(info, "pdv_slots").values())
