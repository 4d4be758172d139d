"""What each way to wait for messages costs: ``--wait block``, ``spin`` and ``hybrid``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.handoff.cells import Cells, ratio_fields, ratio_of
from bench.handoff.processes import together
from bench.handoff.tables import Rows, markdown, ratio_text
from bench.handoff.variants import Variant, families
from bench.statistics import ALPHA, corrected
from pdv_mp.workers.handoffs import combine, report

OPTION = "wait"


def wire_p50_us(edges: Mapping[str, Any]) -> float | None:
    """The median over all messages between workers; None where there are none."""
    between = [found for edge, found in edges.items() if "front" not in edge]
    parts = report(combine(({"draft>verify": found}, 1) for found in between))
    wire = parts.get("draft>verify", {"parts": {}})["parts"].get("wire")
    return None if wire is None else float(wire["p50_us"])


def wait_rows(variants: Sequence[Variant], cells: Cells) -> Rows:
    """By topology, concurrency and way: the ratio of throughput to ``block``, CPU seconds and
    context switches per token of all its processes, and the median ``wire`` between workers."""
    compared = families(variants, OPTION)
    concurrencies = list(dict.fromkeys(concurrency for _, concurrency in cells))
    alpha = corrected(ALPHA, sum(len(found) - 1 for found in compared) * len(concurrencies))
    rows = []
    for family in compared:
        for concurrency in concurrencies:
            reference = cells[family[0].name, concurrency]
            for variant in family:
                cell = cells[variant.name, concurrency]
                ratio = None if variant is family[0] else ratio_of(cell, reference, alpha)
                spent = together(cell.use)
                rows.append(
                    {
                        "topology": variant.name,
                        "concurrency": concurrency,
                        "wait": variant.value(OPTION),
                        **ratio_fields(ratio),
                        "cpu_s_per_token": spent.cpu / cell.timed_tokens,
                        "voluntary_switches_per_token": spent.voluntary / cell.timed_tokens,
                        "involuntary_switches_per_token": spent.involuntary / cell.timed_tokens,
                        "wire_p50_us": wire_p50_us(cell.edges),
                    }
                )
    return rows


def wait_table(rows: Rows) -> str:
    """The ways side by side; per token."""
    head = ("topology", "C", "÷ block", "CPU ms", "switches: voluntary", "involuntary", "wire p50")
    return markdown(
        head,
        (
            (
                *(row["topology"], row["concurrency"], ratio_text(row)),
                f"{row['cpu_s_per_token'] * 1000:.2f}",
                f"{row['voluntary_switches_per_token']:.2f}",
                f"{row['involuntary_switches_per_token']:.2f}",
                "–" if row["wire_p50_us"] is None else f"{row['wire_p50_us']:.0f}",
            )
            for row in rows
        ),
    )
