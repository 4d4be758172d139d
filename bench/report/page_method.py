"""The page's sections on how it was measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from bench.report.facts import commit, machine
from bench.report.page_blocks import (
    Block,
    Code,
    Definitions,
    Heading,
    Paragraph,
    Section,
    Table,
    foldable,
)
from bench.report.recommendation import load_text
from bench.report.summaries import Analysis
from bench.statistics import samples_needed

DEFINITIONS = (
    (
        "Output tokens/s (throughput)",
        "Tokens that arrived at the clients in the steady window / its length: every one, also "
        "those of requests that the window's end cut off. Warm-up and ramp are not in it. Averages "
        "over blocks are geometric means.",
    ),
    ("TTFT, time to first token", "From a request's scheduled arrival to its first token."),
    ("End-to-end latency", "From a request's scheduled arrival to its last token."),
    (
        "TPOT, time per output token",
        "(end-to-end latency - TTFT) / (tokens - 1). The first token is not in it.",
    ),
    (
        "Inter-event time",
        "Between two messages with tokens of one request. With speculation one message holds "
        "several tokens, so this is longer than TPOT.",
    ),
    (
        "Scheduled arrival",
        "In an open loop or a trace, when a request was to be sent, even if it was sent late; in a "
        "closed loop, when its client sent it.",
    ),
    (
        "P99 and P95",
        f"Of all requests of a cell's blocks; from {samples_needed(0.95)} requests for P95 and "
        f"{samples_needed(0.99)} for P99, below that nothing can be said (“n too small”).",
    ),
    ("Goodput", "Requests/s that met every limit that the run sets (its objective)."),
    (
        "Acceptance rate",
        "Draft tokens that the verifier accepted / draft tokens. The verifier's own token of a "
        "cycle counts in neither.",
    ),
    (
        "Acceptance length",
        "1 + accepted draft tokens / cycles that drafted: tokens per step of the verifier that had "
        "drafts to judge.",
    ),
    (
        "Orchestration share",
        "The part of a request's time in which its next token waits for messages, hand-overs "
        "between workers, or text: encode, wire, decode, inbox, batch, publish, text and outbox of "
        "its timeline. Never computing, a queue or a busy worker.",
    ),
    ("Concurrency, C", "Clients of a closed loop, each with one request open at a time."),
    ("Block", "Every candidate under every load once. The unit of all intervals of ratios."),
    ("Noise floor", "How far the throughput ratio of two equal servers was from 1 in this run."),
    (
        "Smallest difference that could have been shown",
        "The true ratio that these blocks would have told from 1 with a probability of 80 %.",
    ),
    (
        "Ahead, behind",
        "The whole interval of the throughput ratio lies above or below 1, and further from it "
        "than the noise floor. Otherwise no difference is shown, which is not the same as none.",
    ),
)


def definitions() -> Section:
    """Every metric."""
    return Section("definitions", "What the words mean", [Definitions(DEFINITIONS)])


def method(analysis: Analysis) -> Section:
    """Environment, command, versions, seeds, fingerprints, loads, workload."""
    run = analysis.run
    environment = run.environment
    blocks: list[Block] = [
        Paragraph(
            "Servers of all candidates run on one machine and are idle while another one is "
            "measured. Clients speak the public protocol and run on the same machine. "
            f"{_CACHE_OFF if _is_cache_off(analysis) else ''}Every candidate gets the same "
            "requests in the same order. Block 0 is warm-up: it carries timelines, and its rates "
            "do not count."
        ),
        Code(shlex.join(run.command), "The command of this run"),
        Table(
            "The run",
            ["what", "value"],
            [
                ("started", run.started),
                ("ended", "not yet, or cut off" if analysis.end is None else analysis.end.stopped),
                ("machine", machine(environment)),
                ("commit", commit(environment)),
                ("window and ramp before it", f"{run.window:g} s, {run.ramp:g} s"),
                ("budget", f"{run.budget:g} s"),
                ("stops when intervals are narrower than", run.precision or "it does not"),
                ("seed", str(run.seed)),
                ("workload", _flat(run.workload)),
                ("objective of goodput", _flat(_objective(analysis)) or "none"),
            ],
        ),
        Table(
            "Loads",
            ["load", "kind", "clients", "requests/s", "burstiness", "trace"],
            [
                (
                    load_text(load),
                    load.kind,
                    load.concurrency,
                    load.rate,
                    load.burstiness,
                    load.trace,
                )
                for load in run.loads
            ],
        ),
        Table(
            "Model pairs, with SHA-256 of their weights",
            ["pair", "verifier", "draft model", "verifier's weights", "draft model's weights"],
            [
                (
                    pair.name,
                    pair.model or "shipped",
                    pair.draft_model or "shipped",
                    _short(pair.model_fingerprint),
                    _short(pair.draft_fingerprint),
                )
                for pair in run.pairs
            ],
        ),
        Table(
            "Environment", ["what", "value"], _pairs(environment), folded="The environment in full"
        ),
    ]
    return Section("method", "How it was measured", blocks)


def problems(analysis: Analysis) -> Section:
    """Failed and invalid cells, and how requests fared."""
    rows = [
        (
            cell.candidate,
            load_text(cell.shape),
            cell.pair,
            problem.block,
            problem.kind,
            problem.reason,
        )
        for cell in analysis.cells
        for problem in cell.problems
    ]
    blocks: list[Block] = []
    if rows:
        blocks.append(
            foldable(
                f"All {len(rows)} that failed or do not count",
                "Blocks of cells that failed or do not count",
                ["candidate", "load", "pair", "block", "what", "why"],
                rows,
            )
        )
    else:
        blocks.append(Paragraph("No cell failed, and none was invalid."))
    blocks += [
        Heading("How requests fared"),
        Table(
            "Requests of the blocks that count; those cut off were open when a window ended",
            [
                "candidate",
                "load",
                "pair",
                "blocks",
                "offered",
                "completed",
                "cut off",
                "refused",
                "failed",
                "lateness P99, ms",
                "errors",
            ],
            [
                (
                    cell.candidate,
                    load_text(cell.shape),
                    cell.pair,
                    f"{cell.blocks} of {cell.measured}",
                    cell.counts.offered,
                    cell.counts.completed,
                    cell.counts.cut_off,
                    cell.counts.refused,
                    cell.counts.failed,
                    cell.lateness_ms,
                    _flat(cell.errors),
                )
                for cell in analysis.cells
            ],
            folded="Requests by cell",
        ),
    ]
    return Section("problems", "What failed or does not count", blocks)


_CACHE_OFF = "Prefix caching is off, so nobody skips work. "


def _is_cache_off(analysis: Analysis) -> bool:
    options = [candidate.options for candidate in analysis.run.candidates]
    return all(found.get("enable_prefix_caching") is False for found in options)


def _objective(analysis: Analysis) -> dict[str, Any]:
    found = analysis.run.objective
    limits = {"TTFT, ms": found.ttft_ms, "TPOT, ms": found.tpot_ms, "end to end, ms": found.e2e_ms}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _flat(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in _pairs(found))


def _pairs(found: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested facts as lines."""
    rows: list[tuple[str, str]] = []
    for name, value in found.items():
        if isinstance(value, Mapping):
            rows += _pairs(value, f"{before}{name}, ")
        elif isinstance(value, (list, tuple)):
            rows.append((f"{before}{name}", ", ".join(map(str, value)) or "none"))
        else:
            rows.append((f"{before}{name}", "unknown" if value is None else str(value)))
    return rows


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else f"{fingerprint[:16]}…"
