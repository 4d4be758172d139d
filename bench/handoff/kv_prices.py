"""What each way to hand on KV costs: ``--kv-handoff pool``, ``copy`` and ``handle``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.handoff.cells import Cells, ratio_fields, ratio_of
from bench.handoff.tables import Rows, markdown, part_text, ratio_text
from bench.handoff.variants import Variant, families
from bench.statistics import ALPHA, corrected
from pdv_mp.config import EngineConfig
from pdv_mp.resources.resource_plan import DRAFT, ResourcePlan, make_plan

OPTION = "kv-handoff"
EDGES = ("prefill>verify", "verify>draft")
"""Over which KV goes."""


def bytes_per_token(plan: ResourcePlan) -> dict[str, int]:
    """By edge, what is to be copied of each token of a prompt.

    A copy of the draft model's KV for a worker of its own passes through the verifier's process; a
    handle is only passed on, and read where it is wanted.
    """
    if not plan.private_caches:
        return dict.fromkeys(EDGES, 0)
    sizes = {m.role: m.config.kv_bytes_per_token(plan.dtype) for m in plan.models}
    apart = sizes.get(DRAFT, 0) if "draft" in plan.topology.lanes(0) else 0
    passing = 0 if plan.kv_handoff == "copy" else apart
    return {EDGES[0]: sum(sizes.values()) - passing, EDGES[1]: apart}


def price_rows(
    variants: Sequence[Variant],
    edges: Rows,
    cells: Cells,
    configurations: Mapping[str, Mapping[str, Any]],
) -> Rows:
    """By topology, concurrency, way and edge: the edge's row of ``edges``, ``expected_kv_bytes``
    (tokens × KV bytes per token), and the ratio of throughput to the pool's."""
    compared = families(variants, OPTION)
    concurrencies = list(dict.fromkeys(concurrency for _, concurrency in cells))
    alpha = corrected(ALPHA, sum(len(found) - 1 for found in compared) * len(concurrencies))
    known = {(row["topology"], row["concurrency"], row["edge"]): row for row in edges}
    rows = []
    for family in compared:
        for concurrency in concurrencies:
            reference = cells[family[0].name, concurrency]
            for variant in family:
                cell = cells[variant.name, concurrency]
                ratio = None if variant is family[0] else ratio_of(cell, reference, alpha)
                plan = make_plan(EngineConfig.from_dict(configurations[variant.name]))
                tokens = sum(found.prompt_tokens for found in cell.timed)
                for edge, size in bytes_per_token(plan).items():
                    row = known.get((variant.name, concurrency, edge))
                    if row is not None:
                        expected = {"expected_kv_bytes": tokens * size}
                        way = {"kv_handoff": variant.value(OPTION)}
                        rows.append({**way, **row, **expected, **ratio_fields(ratio)})
    return rows


def wrong_counts(rows: Rows) -> list[str]:
    """Where other bytes were counted than expected, in words."""
    return [
        f"{row['topology']}, C = {row['concurrency']}, {row['edge']}: {row['kv_bytes']} bytes of "
        f"KV were counted, not {row['expected_kv_bytes']}"
        for row in rows
        if row["kv_bytes"] != row["expected_kv_bytes"]
    ]


def price_table(rows: Rows) -> str:
    """The ways side by side."""
    head = ("topology", "C", "÷ pool", "edge", "messages", "bytes", "KV bytes", "expected")
    parts = ("encode", "wire", "decode")
    body = []
    for row in rows:
        counts = (row["messages"], row["bytes"], row["kv_bytes"], row["expected_kv_bytes"])
        place = (row["topology"], row["concurrency"], ratio_text(row), row["edge"])
        body.append((*place, *counts, *(part_text(row, part) for part in parts)))
    return markdown((*head, *parts), body)
