"""What ``pdv-top`` shows, as rich draws it; everything fits into 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launcher.top_rates import Info, Span, number, table
from pdv_mp.metrics.reading import PHASES, RUNNING, WAITING

WIDTH = 80

NOTHING = "–"

_BARS = " ▁▂▃▄▅▆▇█"
_SHARE_WIDTH = 16

_LATENCIES = {
    "first token": "time_to_first_token",
    "per token": "time_per_output_token",
    "delivery": "inter_token",
    "end to end": "end_to_end",
    "in queue": "queue",
}
"""The first is TTFT, the second TPOT, the third what others call ITL."""

_STAGE_QUEUES = {
    "prefill": (("stages", "prefill", "waiting"), ("stages", "prefill", "prompts")),
    "verify": (("stages", "verify", "ready"),),
}


def view(span: Span, endpoint: str, trouble: str | None = None) -> RenderableType:
    """A running server. ``trouble`` says why the numbers are old, if they are."""
    parts: list[RenderableType] = [_head(span, endpoint)]
    if trouble is not None:
        parts.append(Text(trouble, style="bold red"))
    parts += [_requests(span), _speculation(span), _processes(span)]
    if span.info.get("gpus"):
        parts.append(_gpus(span))
    parts += [_stages(span), _edges(span)]
    return Group(*parts)


def waiting(endpoint: str, trouble: str) -> RenderableType:
    """Before anything was heard of a server."""
    return Panel(Text(trouble), title=Text(f"pdv-top {endpoint}"), title_align="left", width=WIDTH)


def _head(span: Span, endpoint: str) -> Text:
    info = span.info
    facts = info["facts"]
    models = facts["model"] + (f" + {facts['draft_model']}" if facts["draft_model"] else "")
    text = Text(overflow="ellipsis", no_wrap=True)
    text.append("pdv-top ", style="bold")
    text.append(f"{endpoint}  ", style="cyan")
    text.append(f"{info['topology']} on {facts['device']}, {models}")
    text.append(f"  last {span.seconds:.0f} s" if span.seconds else "  since the start", "dim")
    return text


# ------------------------------------------------------------------ requests


def _requests(span: Span) -> Table:
    """Rates and counts at the left, latencies at the right."""
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_row(_counts(span), _latencies(span))
    return grid


def _counts(span: Span) -> Table:
    info = span.info
    running = _sum(info, RUNNING)
    slots, blocks = number(info, "pools", "slots"), number(info, "pools", "blocks")
    used = number(info, "pools", "blocks_in_use") / blocks if blocks else 0.0
    errors = sum(table(info, "counters", "errors").values())
    rows = (
        ("requests/s", _number(span.finished), "goodput/s", _good(span)),
        ("tokens/s", _number(span.rate("served", "generation_tokens")), "errors", str(errors)),
        ("running", str(running), "slots", str(slots)),
        ("waiting", str(_sum(info, WAITING)), "restarts", _count(info, "restarts")),
        ("KV used", _percent(used), "blocks", str(blocks)),
        ("open", _count(info, "open_requests"), "clients", _count(info, "connections")),
    )
    drawn = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(2):
        drawn.add_column(style="dim", no_wrap=True)
        drawn.add_column(style="bold", justify="right", min_width=7, no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    return drawn


def _good(span: Span) -> str:
    return _number(span.rate("served", "good_requests"))


def _count(info: Info, name: str) -> str:
    return str(number(info, "counters", name))


def _sum(info: Info, paths: Sequence[tuple[str, ...]]) -> int:
    return sum(number(info, *path) for path in paths)


def _latencies(span: Span) -> Table:
    drawn = _table("latency", "p50", "p90", "p99")
    for title, name in _LATENCIES.items():
        shares = [span.latency(name, share) for share in (0.5, 0.9, 0.99)]
        drawn.add_row(title, *map(_seconds, shares))
    return drawn


def _speculation(span: Span) -> Text:
    drafts, drafted, accepted = span.cycles
    text = Text("speculation  ", style="bold cyan", no_wrap=True, overflow="ellipsis")
    method = number(span.info, "speculation", "method") or "none"
    if method == "none":
        return text.append("none", "not bold default")
    lengths = [
        str(replica["controller"]["length"])
        for replica in span.info["replicas"]
        if replica.get("controller")
    ]
    facts = (
        (_share(accepted, drafted), "accepted"),
        (f"{1 + accepted / drafts:.2f}" if drafts else NOTHING, "tokens/cycle"),
        (f"{drafted / drafts:.1f}" if drafts else NOTHING, "drafted"),
        (", ".join(dict.fromkeys(lengths)) or NOTHING, "now"),
    )
    for value, name in facts:
        text.append(f"{value} ", "bold default").append(f"{name}  ", "dim not bold default")
    return text.append(_bars(span.accepted_per_position), "not bold green")


def _bars(shares: Sequence[float]) -> str:
    """One bar for each position of a draft: how often a token there was accepted."""
    return "".join(_BARS[round(share * (len(_BARS) - 1))] for share in shares[:12])


# ------------------------------------------------------------------ processes


def _table(*columns: str) -> Table:
    """The first column is text, the others are numbers."""
    drawn = Table(
        header_style="bold cyan",
        box=None,
        padding=(0, 1),
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return drawn


def _processes(span: Span) -> Table:
    info = span.info
    on_gpu = any("vram" in memory for memory in table(info, "memory").values())
    columns = ("process", "pid", "CPU", "threads", "RSS", "PSS", "restarts")
    drawn = _table(*columns, *(("GPU",) if on_gpu else ()), "")
    away = set(info["away"])
    for name in dict.fromkeys([*info["processes"], *sorted(away), *table(info, "cpu")]):
        memory = table(info, "memory", name)
        row = [
            name,
            str(number(info, "cpu", name, "pid") or ""),
            _percent(_cores(span, name)),
            str(number(info, "cpu", name, "threads") or ""),
            _bytes(memory.get("rss")),
            _bytes(memory.get("pss")),
            str(number(info, "restarts", name) or ""),
        ]
        if on_gpu:
            row.append(_bytes(memory.get("vram")))
        if name in away:
            drawn.add_row(*row, "restarting", style="red")
        else:
            drawn.add_row(*row, "")
    return drawn


def _cores(span: Span, name: str) -> float | None:
    """Cores that a process used; None if it has not been there all the time."""
    pids = [number(info, "cpu", name, "pid") for info in (span.before.info, span.info)]
    return span.rate("cpu", name, "seconds") if pids[0] and pids[0] == pids[1] else None


def _gpus(span: Span) -> Table:
    drawn = _table("GPU", "busy", "memory", "of")
    for gpu in span.info["gpus"]:
        drawn.add_row(
            f"{gpu['index']} {gpu['name']}",
            _percent(gpu.get("utilisation")),
            _bytes(gpu.get("memory_used")),
            _bytes(gpu.get("memory_total")),
        )
    return drawn


# ------------------------------------------------------------------ stages and edges


def _stages(span: Span) -> Table:
    drawn = _table("stage", "batches/s", "batch", "tokens/s", "queue", "busy", "forming", "")
    for stage in ("prefill", "draft", "verify"):
        totals = number(span.info, "batch_totals", stage)
        if not totals:
            continue
        batches = span.grown("batch_totals", stage, "batches")
        mean = span.grown("batch_totals", stage, "sequences") / batches if batches else None
        paths = _STAGE_QUEUES.get(stage)
        queue = str(sum(number(span.info, *path) for path in paths)) if paths else ""
        busy = span.rate("batch_totals", stage, "compute_ns")
        forming = span.rate("batch_totals", stage, "batch_ns")
        drawn.add_row(
            stage,
            _number(span.rate("batch_totals", stage, "batches")),
            _number(mean),
            _number(span.rate("batch_totals", stage, "rows")),
            queue,
            _percent(None if busy is None else busy / 1e9),
            _percent(None if forming is None else forming / 1e9),
            _gauge(busy),
        )
    return drawn


def _gauge(busy_ns: float | None) -> Text:
    """A bar of how much of the time a stage computed."""
    filled = round(min(1.0, (busy_ns or 0.0) / 1e9) * _SHARE_WIDTH)
    return Text.assemble(("━" * filled, "green"), ("━" * (_SHARE_WIDTH - filled), "bright_black"))


def _edges(span: Span) -> Table:
    drawn = _table("edge", "msgs/s", "kB/s", "mean", "mostly", "p50", "p99")
    for edge, handoff in span.handoffs.items():
        parts = {name: handoff["parts"][name] for name in PHASES if name in handoff["parts"]}
        if not parts:
            continue
        largest = max(parts, key=lambda name: float(parts[name]["mean_us"]))
        seconds = span.seconds
        count = handoff["messages"] or handoff["local"]
        drawn.add_row(
            edge if handoff["messages"] else Text(edge, style="dim"),
            _number(count / seconds if seconds else None),
            _number(handoff["bytes"] / seconds / 1000 if seconds else None),
            _microseconds(sum(part["mean_us"] for part in parts.values())),
            largest,
            _microseconds(parts[largest]["p50_us"]),
            _microseconds(parts[largest]["p99_us"]),
        )
    return drawn


# ------------------------------------------------------------------ numbers


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0%}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else NOTHING


def _seconds(value: float | None) -> str:
    if value is None:
        return NOTHING
    if value < 0.9995:
        return f"{value * 1e3:.1f} ms" if value < 0.0995 else f"{value * 1e3:.0f} ms"
    return f"{value:.1f} s"


def _microseconds(value: float) -> str:
    return f"{value:.0f} µs" if value < 9999.5 else f"{value / 1000:.0f} ms"


def _bytes(value: Any) -> str:
    if value is None:
        return ""
    for unit, size in (("G", 1 << 30), ("M", 1 << 20)):
        if value >= size:
            return f"{value / size:.1f}{unit}" if value < 10 * size else f"{value / size:.0f}{unit}"
    return f"{value / 1024:.0f}K"
