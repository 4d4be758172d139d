"""The lines of one cell in the tables of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.report.cells import CLIENTS
from bench.report.states import GROUPS
from bench.report.summaries import CellSummary, Estimate, Latency
from bench.results.records import Counts
from bench.statistics import Quantile, Ratio

Row = dict[str, Any]

LATENCIES: Mapping[str, Callable[[CellSummary], Latency]] = {
    "ttft": lambda cell: cell.ttft,
    "tpot": lambda cell: cell.tpot,
    "inter_event": lambda cell: cell.inter_event,
    "e2e": lambda cell: cell.e2e,
}

CENSORED = ("ttft", "e2e")
"""Latencies of which some were not known yet when a window ended."""

MOST_POSITIONS = 16
"""Positions of the draft that have a column."""


def place(cell: CellSummary) -> Row:
    """The columns that name a cell."""
    shape = cell.shape
    return {
        "pair": cell.pair,
        "candidate": cell.candidate,
        "topology": cell.topology,
        "twin_of": cell.twin_of,
        "load": cell.load,
        "kind": shape.kind,
        "concurrency": shape.concurrency,
        "rate_per_s": shape.rate,
        "burstiness": shape.burstiness,
        "blocks": cell.blocks,
        "blocks_measured": cell.measured,
    }


def with_place(cell: CellSummary, row: Callable[[CellSummary], Row]) -> Row:
    """A part of a cell's line, after the columns that name it."""
    return {**place(cell), **row(cell)}


def cell_row(cell: CellSummary) -> Row:
    """Everything that one line can hold."""
    row = place(cell)
    for part in (throughput_row, latency_row, utilisation_row, acceptance_row, time_row):
        row.update(part(cell))
    for kind in ("failed", "invalid", "replaced"):
        row[f"blocks_{kind}"] = sum(problem.kind == kind for problem in cell.problems)
    row["problems"] = "; ".join(f"block {p.block}: {p.reason}" for p in cell.problems)
    return row


def throughput_row(cell: CellSummary) -> Row:
    """Tokens, requests and good requests per second, and how requests fared."""
    counts = {f"requests_{n}": getattr(cell.counts, n) for n in Counts.__struct_fields__}
    return {
        **estimate_columns("output_tokens_per_s", cell.throughput),
        **estimate_columns("requests_per_s", cell.requests_per_s),
        **estimate_columns("goodput_requests_per_s", cell.goodput),
        **estimate_columns("tokens_per_event", cell.tokens_per_event),
        **counts,
        "bound_output_tokens_per_s": cell.bound,
        "measured_over_bound": cell.share_of_bound,
        "errors": "; ".join(f"{code}: {count}" for code, count in cell.errors.items()),
        "lateness_p99_ms": cell.lateness_ms,
    }


def latency_row(cell: CellSummary) -> Row:
    """Means and quantiles of every latency."""
    row: Row = {}
    for name, of in LATENCIES.items():
        latency = of(cell)
        row.update(estimate_columns(f"{name}_mean_ms", latency.mean))
        for q, found in (("p50", latency.p50), ("p95", latency.p95), ("p99", latency.p99)):
            row.update(estimate_columns(f"{name}_{q}_ms", found))
        row[f"{name}_samples"] = latency.samples
        if name in CENSORED:
            row[f"{name}_unfinished"] = latency.unfinished
            row[f"{name}_oldest_unfinished_ms"] = latency.oldest_unfinished_ms
    return {
        **row,
        **estimate_columns("prefill_ms", cell.prefill_ms),
        **estimate_columns("decode_ms", cell.decode_ms),
        "durations_from": cell.durations,
    }


def utilisation_row(cell: CellSummary) -> Row:
    """Cores, memory and GPUs."""
    server = {name: use for name, use in cell.uses.items() if name != CLIENTS}
    pss = [use.pss_bytes for use in server.values() if use.pss_bytes is not None]
    clients = cell.uses.get(CLIENTS)
    row: Row = {
        "server_cores": cell.server_cores,
        "client_cores": None if clients is None else clients.cores,
        "server_cpu_seconds_per_token": cell.cpu_seconds_per_token,
        "server_processes": len(server) or None,
        "server_pss_bytes": sum(pss) if server and len(pss) == len(server) else None,
        "server_rss_sum_bytes": sum(use.rss_bytes for use in server.values()) or None,
        "host_load_cores": cell.host_load,
        "gpus": len(cell.gpus),
        "gpu_utilisation": None,
        "gpu_memory_bytes": None,
    }
    if cell.gpus:
        row["gpu_utilisation"] = sum(gpu.utilisation for gpu in cell.gpus) / len(cell.gpus)
        row["gpu_memory_bytes"] = sum(gpu.memory_bytes for gpu in cell.gpus)
    return row


def acceptance_row(cell: CellSummary) -> Row:
    """How drafts fared."""
    found = cell.speculation
    positions = {
        f"accepted_at_{number}_share": share
        for number, share in enumerate(found.per_position[:MOST_POSITIONS], 1)
    }
    return {
        **estimate_columns("acceptance_rate", found.acceptance_rate),
        **estimate_columns("acceptance_length_tokens", found.acceptance_length),
        **estimate_columns("draft_length_tokens", found.draft_length),
        "cycles": found.cycles,
        "drafted_tokens": found.drafted,
        "accepted_tokens": found.accepted,
        **positions,
    }


def time_row(cell: CellSummary) -> Row:
    """Where a token's time goes."""
    spent = cell.time_spent
    row: Row = {
        "requests_followed": 0 if spent is None else spent.requests,
        **estimate_columns("orchestration_share", cell.orchestration_share),
        "orchestration_share_interval_over": None if spent is None else spent.over,
        "ms_per_token": None if spent is None else spent.ms_per_token,
    }
    for group in GROUPS:
        name = group.replace(" ", "_").replace("-", "_")
        row[f"{name}_share"] = None if spent is None else spent.groups[group]
    for state, share in sorted({} if spent is None else spent.states.items()):
        row[f"{state}_share"] = share
    return row


def process_rows(cell: CellSummary) -> Iterator[Row]:
    """One line for each process."""
    for name, use in cell.uses.items():
        yield {
            **place(cell),
            "process": name,
            "cores": use.cores,
            "voluntary_switches_per_s": use.voluntary_switches_per_s,
            "involuntary_switches_per_s": use.involuntary_switches_per_s,
            "rss_bytes": use.rss_bytes,
            "pss_bytes": use.pss_bytes,
        }


def problem_rows(cell: CellSummary) -> Iterator[Row]:
    """One line for each block that does not count."""
    for problem in cell.problems:
        yield {
            **place(cell),
            "block": problem.block,
            "kind": problem.kind,
            "reason": problem.reason,
        }


def estimate_columns(name: str, found: Estimate | Quantile | None) -> Row:
    """A value and the ends of its interval, which have the same unit."""
    return {
        name: found and found.value,
        f"{name}_low": found and found.low,
        f"{name}_high": found and found.high,
    }


def ratio_columns(name: str, found: Ratio | None) -> Row:
    """A ratio and the ends of its interval."""
    return {
        name: found and found.estimate,
        f"{name}_low": found and found.low,
        f"{name}_high": found and found.high,
    }
