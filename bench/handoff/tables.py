"""Throughput, edges and processes of every variant, as rows and as Markdown."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.handoff.cells import Cells
from bench.handoff.gap import PARTS as GAP_PARTS
from bench.handoff.states import STATES
from pdv_mp.workers.handoffs import BUSY, COUNTS, PARTS

Rows = list[dict[str, Any]]

SHOWN_PARTS = ("encode", "wire", BUSY, *PARTS[2:])


def topology_rows(cells: Cells) -> Rows:
    """By variant and concurrency: tokens/s, orchestration share, µs per token by state."""
    return [
        {
            "topology": name,
            "concurrency": concurrency,
            "tokens_per_s": statistics.median(cell.rates),
            "tokens_per_s_min": min(cell.rates),
            "tokens_per_s_max": max(cell.rates),
            "orchestration_share": statistics.mean(cell.shares),
            **{f"{state}_us_per_token": cell.us_per_token(state) for state in STATES},
        }
        for (name, concurrency), cell in cells.items()
    ]


def edge_rows(cells: Cells) -> Rows:
    """By variant, concurrency and edge: counts, and p50 and p99 of each part in µs."""
    rows = []
    for (name, concurrency), cell in cells.items():
        for edge, found in cell.edges.items():
            row: dict[str, Any] = {"topology": name, "concurrency": concurrency, "edge": edge}
            row.update({key: found[key] for key in COUNTS})
            for part in (*PARTS, BUSY):
                known = found["parts"].get(part, {})
                for number in ("n", "mean_us", "p50_us", "p99_us"):
                    row[f"{part}_{number}"] = known.get(number)
            rows.append(row)
    return rows


def process_rows(cells: Cells) -> Rows:
    """By variant, concurrency and process: CPU seconds and context switches per token."""
    return [
        {
            "topology": name,
            "concurrency": concurrency,
            "process": process,
            "cpu_s_per_token": spent.cpu / cell.timed_tokens,
            "voluntary_switches_per_token": spent.voluntary / cell.timed_tokens,
            "involuntary_switches_per_token": spent.involuntary / cell.timed_tokens,
        }
        for (name, concurrency), cell in cells.items()
        for process, spent in cell.use.items()
    ]


def topology_table(rows: Iterable[dict[str, Any]]) -> str:
    """Throughput and orchestration share."""
    head = ("topology", "C", "tokens/s: median (range)", "orchestration share")
    body = []
    for row in rows:
        low, high = row["tokens_per_s_min"], row["tokens_per_s_max"]
        rate = f"{row['tokens_per_s']:.0f} ({low:.0f}–{high:.0f})"
        share = f"{row['orchestration_share']:.1%}"
        body.append((row["topology"], row["concurrency"], rate, share))
    return markdown(head, body)


def edge_table(rows: Iterable[dict[str, Any]]) -> str:
    """What each edge cost; a handoff within one process has no message."""
    names = [f"of it {name}" if name == BUSY else name for name in SHOWN_PARTS]
    head = ("topology", "C", "edge", "messages (local)", "bytes", "KV bytes", *names)
    return markdown(
        head,
        (
            (
                *(row[name] for name in ("topology", "concurrency", "edge")),
                f"{row['messages']} ({row['local']})",
                *(row["bytes"], row["kv_bytes"]),
                *(part_text(row, part) for part in SHOWN_PARTS),
            )
            for row in rows
        ),
    )


def part_text(row: dict[str, Any], part: str) -> str:
    """p50 and p99 of a part of an edge's row."""
    if row[f"{part}_n"] is None:
        return "–"
    return f"{row[f'{part}_p50_us']:.0f} / {row[f'{part}_p99_us']:.0f}"


def ratio_text(row: dict[str, Any], name: str = "ratio") -> str:
    """A ratio of a row with its interval."""
    if row[name] is None:
        return "–"
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f}–{row[f'{name}_high']:.3f})"


def process_table(rows: Iterable[dict[str, Any]]) -> str:
    """CPU time and context switches by process."""
    head = ("topology", "C", "process", "CPU ms", "switches: voluntary", "involuntary")
    return markdown(
        head,
        (
            (
                *(row["topology"], row["concurrency"], row["process"]),
                f"{row['cpu_s_per_token'] * 1000:.3f}",
                f"{row['voluntary_switches_per_token']:.3f}",
                f"{row['involuntary_switches_per_token']:.3f}",
            )
            for row in rows
        ),
    )


def gap_table(rows: Sequence[dict[str, Any]]) -> str:
    """The gap to the reference, in µs per token."""
    return markdown(
        (f"against {rows[0]['reference']}", "C", "gap", *GAP_PARTS),
        (
            (
                *(row["topology"], row["concurrency"]),
                *(f"{row[part]:+.0f}" for part in ("gap_us_per_token", *GAP_PARTS)),
            )
            for row in rows
        ),
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line for each row, under the names of the first row's fields."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
