"""The rows and the page of the concurrent test."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.concurrent.bursts import Burst
from bench.concurrent.experiment import Variant
from bench.statistics import ALPHA, quantile

SCHEMA_VERSION = 1
"""Of ``concurrent.csv`` and ``concurrent.json``."""

TARGETS: Mapping[int, float] = {1: 0.2, 5: 3.0, 50: 20.0}
"""Seconds within which so many requests at once are to be done, by the sources."""

_MIB = 1 << 20


def verdict(times: Sequence[float], target: float) -> str:
    """Whether the target was met by every repeat, by none, or by how many of them."""
    kept = sum(time < target for time in times)
    if kept == len(times):
        return "met"
    return f"met in {kept} of {len(times)}" if kept else "not met"


def rows(
    bursts: Iterable[Burst], variants: Sequence[Variant], broken: Mapping[str, int]
) -> list[dict[str, Any]]:
    """A row for each variant and level that was tried. Times are medians over the repeats, with
    their range and, from six repeats on, the 95 % interval of the median."""
    found = []
    bursts = list(bursts)
    for variant in variants:
        mine = [burst for burst in bursts if burst.variant == variant.name]
        for level in sorted({burst.requests for burst in mine}):
            of_level = [burst for burst in mine if burst.requests == level]
            found.append(_row(variant, level, of_level, broken.get(variant.name) == level))
    return found


def _row(variant: Variant, level: int, bursts: Sequence[Burst], breaks: bool) -> dict[str, Any]:
    whole = [burst for burst in bursts if burst.is_whole and burst.time_s is not None]
    times = [burst.time_s for burst in whole if burst.time_s is not None]
    interval = quantile(times, 0.5, ALPHA)
    prompts = sum(burst.prompt_tokens for burst in whole)
    ttfts = [burst.ttft_mean_s for burst in whole if burst.ttft_mean_s is not None]
    target = TARGETS.get(level)
    memory = [burst.pss_bytes for burst in bursts if burst.pss_bytes is not None]
    resident = [burst.rss_bytes for burst in bursts if burst.rss_bytes is not None]
    return {
        "schema_version": SCHEMA_VERSION,
        "variant": variant.name,
        "chunked_prefill": "on" if variant.chunked_prefill else "off",
        "prefix_caching": "on" if variant.prefix_caching else "off",
        "requests_at_once": level,
        "repeats": len(times),
        "time_s": statistics.median(times) if times else None,
        "time_min_s": min(times, default=None),
        "time_max_s": max(times, default=None),
        "time_low_s": interval and interval.low,
        "time_high_s": interval and interval.high,
        "target_s": target,
        "target": None if target is None else verdict(times, target) if times else "not met",
        "requests_per_s": _median(level / time for time in times),
        "tokens_per_s": _median(b.tokens / t for b, t in zip(whole, times, strict=True)),
        "ttft_ms": None if not ttfts else statistics.median(ttfts) * 1000,
        "cached_prompt_share": sum(b.cached_tokens for b in whole) / prompts if prompts else None,
        "server_pss_bytes": max(memory, default=None),
        "server_rss_bytes": max(resident, default=None),
        "refused": sum(burst.refused for burst in bursts),
        "failed": sum(burst.failed for burst in bursts),
        "breaks": breaks,
        "error": next((burst.error for burst in bursts if burst.error), None),
    }


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table, and what it shows, sentence by sentence."""
    lines = [
        "| server | at once | time, s: median (range) | repeats | target | requests/s | tokens/s "
        "| first token, ms | server memory, MiB |",
        "|" + " --- |" * 9,
    ]
    for row in rows:
        lines.append("| " + " | ".join(_fields(row)) + " |")
    return "\n".join([*lines, "", *_sentences(rows)])


def said_of_cache(rows: Sequence[Mapping[str, Any]], prompt_tokens: int) -> str:
    """What prefix caching has kept of the prompt, where it is on."""
    shares = [
        row["cached_prompt_share"]
        for row in rows
        if row["prefix_caching"] == "on" and row["cached_prompt_share"] is not None
    ]
    if not shares:
        return "Nothing is known of what prefix caching kept."
    why = ""
    if not any(shares):
        why = (
            f": it keeps whole blocks, 16 tokens long unless --block-size says otherwise, and the "
            f"prompt has {prompt_tokens}"
        )
    return f"Prefix caching, where it is on, kept {max(shares):.0%} of the prompt{why}."


def _fields(row: Mapping[str, Any]) -> list[str]:
    time = "–"
    if row["repeats"]:
        time = f"{row['time_s']:.3f}"
        if row["repeats"] > 1:
            time += f" ({row['time_min_s']:.3f}–{row['time_max_s']:.3f})"
    if row["breaks"]:
        why = row["error"] or f"{row['refused']} refused, {row['failed']} failed"
        time = f"breaks: {why}" if time == "–" else f"{time}; breaks: {why}"
    target = "–"
    if row["target_s"] is not None:
        target = f"under {row['target_s']:g} s: {row['target']}"
    memory = row["server_pss_bytes"]
    if memory is None:
        memory = row["server_rss_bytes"]
    return [
        row["variant"],
        str(row["requests_at_once"]),
        time,
        str(row["repeats"]),
        target,
        *(_number(row[name]) for name in ("requests_per_s", "tokens_per_s", "ttft_ms")),
        "–" if memory is None else f"{memory / _MIB:.0f}",
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        broken = [row["requests_at_once"] for row in mine if row["breaks"]]
        highest = max(row["requests_at_once"] for row in mine)
        said = f"breaks at {broken[0]}" if broken else f"does not break up to {highest}, the most"
        found.append(f"- {variant}: {said} at once{'' if broken else ' that were tried'}.")
    return found
