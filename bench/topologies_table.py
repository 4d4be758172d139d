"""What ``bench.topologies`` measured, its comparison and its tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.closed_loop import Window
from bench.handoff_tables import state_class
from bench.statistics import MIN_BLOCKS, Ratio, corrected, paired_ratio
from pdv_mp.topology_rows import STAGES

SCHEMA_VERSION = 1
"""Of the lines and columns that are written."""

GROUPS: dict[str, tuple[str, ...]] = {
    "compute": STAGES,
    "messages": ("encode", "wire", "decode"),
    "waiting": ("waiting", "inbox"),
    "batch + publish": ("batch", "publish"),
    "text + outbox": ("text",),
}
"""Groups of states, by the classes of :func:`bench.handoff_tables.state_class`."""

_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


@dataclass(frozen=True, slots=True)
class Cell:
    """One topology with so many clients in one block; ``order``: its turn in the block.

    ``followed``: with timelines, and not counted as a rate. ``failed``: why there is nothing to
    count. The rest is of the ``requests`` that were open in the window: ``state_ns`` by state of
    their timelines, and ``state_tokens``, how many tokens these requests had in all.
    """

    block: int
    order: int
    topology: str
    concurrency: int
    followed: bool
    failed: str | None = None
    seconds: float = 0.0
    tokens: int = 0
    requests: int = 0
    drafted: int = 0
    accepted: int = 0
    client_cpu: float = 0.0
    server_cpu: float = 0.0
    state_ns: dict[str, int] = field(default_factory=dict)
    state_tokens: int = 0

    @property
    def rate(self) -> float:
        """Tokens/s; 0 for a cell that failed."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def row(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "tokens_per_s": self.rate}


def measured(window: Window, **place: Any) -> Cell:
    """The cell of a window; ``place``: the first five fields of :class:`Cell`."""
    present = window.present
    failed = None if window.tokens else "no token arrived in the window"
    state_ns: dict[str, int] = {}
    tokens = 0
    for record in present:
        timeline = record.done.get("timeline")
        if timeline is not None:
            tokens += record.received
            for name, entry in timeline["states"].items():
                state_ns[name] = state_ns.get(name, 0) + entry["ns"]
    return Cell(
        **place,
        failed=failed,
        seconds=window.seconds,
        tokens=window.tokens,
        requests=len(present),
        drafted=sum(record.done["speculation"]["drafted"] for record in present),
        accepted=sum(record.done["speculation"]["accepted"] for record in present),
        client_cpu=window.client_cpu,
        server_cpu=window.server_cpu,
        state_ns=state_ns,
        state_tokens=tokens,
    )


def group_ns(state_ns: dict[str, int]) -> dict[str, int]:
    """Time by group of states; ``queue`` is a part of ``waiting``."""
    found = dict.fromkeys((*GROUPS, "queue"), 0)
    for name, spent in state_ns.items():
        found[_GROUP_OF[state_class(name)]] += spent
        if name.endswith(".queue"):
            found["queue"] += spent
    return found


def verdict(ratio: Ratio | None, blocks: int, floor: float) -> str:
    """What a comparison has shown. ``floor``: the ratio, 1 or above, that two equal servers
    differed by; an interval that comes closer to 1 than that says nothing."""
    if ratio is None or blocks < MIN_BLOCKS:
        return f"{blocks} blocks are too few"
    if ratio.low > floor:
        return "ahead"
    if ratio.high < 1 / floor:
        return "behind"
    least = ratio.smallest_effect * floor - 1
    return f"no difference shown ({least:.1%} would have been)"


def compare(
    cells: Iterable[Cell],
    names: Sequence[str],
    concurrencies: Sequence[int],
    alpha: float,
    again: str | None,
) -> list[dict[str, Any]]:
    """A row for each topology and concurrency.

    ``names``: the first is the reference; ``again``: the one of them that is a second server of
    the reference. ``alpha`` is for all comparisons together. Only blocks are compared in which
    neither cell failed.
    """
    cells = list(cells)
    each = corrected(alpha, (len(names) - 1) * len(concurrencies))
    rows = []
    for concurrency in concurrencies:
        chosen = {
            name: [c for c in cells if (c.topology, c.concurrency) == (name, concurrency)]
            for name in names
        }
        ratios = {name: _ratio(chosen[name], chosen[names[0]], each) for name in names[1:]}
        floor, twin = 1.0, ratios.get(again or "")
        if twin is not None:
            floor = math.exp(abs(math.log(twin.estimate)))
        for name in names:
            ratio = ratios.get(name)
            # The second server of the reference is the noise itself: its interval must hold 1.
            limit = 1.0 if name == again else floor
            rows.append(_row(name, concurrency, chosen[name], ratio, limit, name == names[0]))
    return rows


def _rates(cells: Iterable[Cell]) -> dict[int, float]:
    return {cell.block: cell.rate for cell in cells if not cell.followed and cell.rate}


def _ratio(cells: Iterable[Cell], reference: Iterable[Cell], alpha: float) -> Ratio | None:
    ours, theirs = _rates(cells), _rates(reference)
    blocks = sorted(ours.keys() & theirs.keys())
    if len(blocks) < 2:
        return None
    return paired_ratio([ours[b] for b in blocks], [theirs[b] for b in blocks], alpha)


def _row(
    name: str,
    concurrency: int,
    cells: Sequence[Cell],
    ratio: Ratio | None,
    floor: float,
    is_reference: bool,
) -> dict[str, Any]:
    rates = list(_rates(cells).values())
    counted = [cell for cell in cells if not cell.followed and cell.rate]
    failed = sum(cell.failed is not None for cell in cells)
    blocks = 0 if ratio is None else ratio.blocks
    text = "reference" if is_reference else verdict(ratio, blocks, floor)
    drafted = sum(cell.drafted for cell in counted)
    row: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "topology": name,
        "concurrency": concurrency,
        "blocks": len(rates),
        "failed": failed,
        "tokens_per_s": statistics.median(rates) if rates else None,
        "tokens_per_s_min": min(rates, default=None),
        "tokens_per_s_max": max(rates, default=None),
        "ratio": ratio and ratio.estimate,
        "ratio_low": ratio and ratio.low,
        "ratio_high": ratio and ratio.high,
        "smallest_effect": ratio and ratio.smallest_effect,
        "alpha": ratio and ratio.alpha,
        "noise_floor": floor,
        "verdict": text,
        "acceptance_rate": sum(cell.accepted for cell in counted) / drafted if drafted else None,
        "server_cpu": _mean(cell.server_cpu for cell in counted),
        "client_cpu": _mean(cell.client_cpu for cell in counted),
    }
    state_ns: dict[str, int] = {}
    for cell in cells:
        for state, spent in cell.state_ns.items():
            state_ns[state] = state_ns.get(state, 0) + spent
    tokens = sum(cell.state_tokens for cell in cells)
    total = sum(state_ns.values())
    row["requests_followed"] = sum(cell.requests for cell in cells if cell.followed)
    row["ms_per_token"] = total / tokens / 1e6 if tokens else None
    for group, spent in group_ns(state_ns).items():
        row[f"{group}_share"] = spent / total if total else None
    return row


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.mean(found) if found else None


def rate_table(rows: Sequence[dict[str, Any]], reference: str) -> str:
    """A Markdown table of throughput and its comparison."""
    lines = [
        f"| topology | C | tokens/s: median (range) | ÷ {reference} (95 % interval) | verdict | "
        "cores: server, clients |",
        "|" + " --- |" * 6,
    ]
    for row in rows:
        rate = ratio = cores = "–"
        if row["blocks"]:
            low, high = row["tokens_per_s_min"], row["tokens_per_s_max"]
            rate = f"{row['tokens_per_s']:.0f} ({low:.0f}–{high:.0f})"
            cores = f"{row['server_cpu']:.2f}, {row['client_cpu']:.2f}"
        if row["ratio"] is not None:
            ratio = f"{row['ratio']:.3f}"
            if row["blocks"] >= MIN_BLOCKS:
                ratio += f" ({row['ratio_low']:.3f}–{row['ratio_high']:.3f})"
        text = row["verdict"]
        if row["failed"]:
            text = f"{text} · {row['failed']} failed"
        place = f"{row['topology']} | {row['concurrency']}"
        lines.append(f"| {place} | {rate} | {ratio} | {text} | {cores} |")
    return "\n".join(lines)


def time_table(rows: Iterable[dict[str, Any]]) -> str:
    """A Markdown table of where the requests' time went."""
    lines = [
        f"| topology | C | requests | ms per token | {' | '.join(GROUPS)} |",
        "|" + " --- |" * (4 + len(GROUPS)),
    ]
    for row in rows:
        parts = ["–"] * len(GROUPS)
        time = "–"
        if row["ms_per_token"] is not None:
            time = f"{row['ms_per_token']:.2f}"
            parts = [f"{row[f'{group}_share']:.1%}" for group in GROUPS]
            queue = f" (queue {row['queue_share']:.1%})"
            parts = [p + queue * (g == "waiting") for g, p in zip(GROUPS, parts, strict=True)]
        place = f"{row['topology']} | {row['concurrency']} | {row['requests_followed']}"
        lines.append(f"| {place} | {time} | {' | '.join(parts)} |")
    return "\n".join(lines)
