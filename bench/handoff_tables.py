"""What ``bench.handoff`` measured, and its tables."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.handoff_gap import PARTS as GAP_PARTS
from pdv_mp.client.client import Completion
from pdv_mp.timeline import orchestration_share
from pdv_mp.topology_rows import STAGES
from pdv_mp.workers.handoffs import BUSY, COUNTS, PARTS, combine, report

STATES = (*STAGES, *PARTS, "text", "waiting")
"""Where a request's time goes: the stages' compute, the parts of a handoff, work on texts and their
delivery, and all other waiting."""


@dataclass
class Cell:
    """One topology at one concurrency, over all rounds."""

    rates: list[float] = field(default_factory=list)
    windows: list[tuple[tuple[int, int], int]] = field(default_factory=list)
    handoffs: list[dict[str, Any]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    state_ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    tokens: int = 0

    def add_timed(self, window: tuple[int, int], tokens: int, handoffs: dict[str, Any]) -> None:
        """A round without timelines."""
        self.rates.append(tokens * 1e9 / (window[1] - window[0]))
        self.windows.append((window, tokens))
        self.handoffs.append(handoffs)

    def add_timelines(self, completions: Iterable[Completion]) -> None:
        """A round with timelines."""
        for completion in completions:
            if completion.timeline is None:
                raise RuntimeError("a request ended without its timeline")
            self.shares.append(orchestration_share(completion.timeline))
            self.tokens += len(completion.ids)
            for name, entry in completion.timeline["states"].items():
                self.state_ns[state_class(name)] += entry["ns"]

    @property
    def edges(self) -> dict[str, Any]:
        """``info.handoffs`` of all timed rounds."""
        return report(combine((found, 1) for found in self.handoffs))

    def us_per_token(self, state: str) -> float:
        """A request's time in a class of states, per token."""
        return self.state_ns[state] / self.tokens / 1000


def state_class(name: str) -> str:
    """The one of :data:`STATES` that a timeline's state counts to."""
    where, _, what = name.rpartition(".")
    if what == "compute" and where in STAGES:
        return where
    if what in ("compute", "outbox"):
        return "text"
    return what if what in STATES else "waiting"


def edge_rows(cells: dict[tuple[str, int], Cell]) -> list[dict[str, Any]]:
    """By topology, concurrency and edge: counts, and p50 and p99 of each part in µs."""
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


def topology_rows(cells: dict[tuple[str, int], Cell]) -> list[dict[str, Any]]:
    """By topology and concurrency: tokens/s, orchestration share, µs per token by state."""
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


def edge_table(rows: Iterable[dict[str, Any]]) -> str:
    """A Markdown table; a handoff within one process has no message."""
    columns = ("encode", "wire", BUSY, *PARTS[2:])
    names = " | ".join(f"of it {name}" if name == BUSY else name for name in columns)
    lines = [
        f"| topology | C | edge | messages (local) | bytes | KV bytes | {names} |",
        "|" + " --- |" * (6 + len(columns)),
    ]
    for row in rows:
        parts = [
            "–" if row[f"{p}_n"] is None else f"{row[f'{p}_p50_us']:.0f} / {row[f'{p}_p99_us']:.0f}"
            for p in columns
        ]
        counts = f"{row['messages']} ({row['local']}) | {row['bytes']} | {row['kv_bytes']}"
        place = f"{row['topology']} | {row['concurrency']} | {row['edge']}"
        lines.append(f"| {place} | {counts} | {' | '.join(parts)} |")
    return "\n".join(lines)


def topology_table(rows: Iterable[dict[str, Any]]) -> str:
    """A Markdown table of throughput and orchestration share."""
    lines = [
        "| topology | C | tokens/s: median (range) | orchestration share |",
        "|" + " --- |" * 4,
    ]
    for row in rows:
        low, high = row["tokens_per_s_min"], row["tokens_per_s_max"]
        rate = f"{row['tokens_per_s']:.0f} ({low:.0f}–{high:.0f})"
        share = f"{row['orchestration_share']:.1%}"
        lines.append(f"| {row['topology']} | {row['concurrency']} | {rate} | {share} |")
    return "\n".join(lines)


def gap_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table; µs per token."""
    lines = [
        f"| against {rows[0]['reference']} | C | gap | {' | '.join(GAP_PARTS)} |",
        "|" + " --- |" * (3 + len(GAP_PARTS)),
    ]
    for row in rows:
        parts = " | ".join(f"{row[part]:+.0f}" for part in GAP_PARTS)
        place = f"{row['topology']} | {row['concurrency']}"
        lines.append(f"| {place} | {row['gap_us_per_token']:+.0f} | {parts} |")
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line for each row, under the names of the first row's fields."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
