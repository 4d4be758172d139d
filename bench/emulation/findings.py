"""What the trials say: tables with what was expected beside what was found."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.emulation.law import MESSAGES, HostCosts
from bench.emulation.records import Trial
from bench.emulation.studies import SPLIT, TWINS, host_cycles
from bench.statistics import ALPHA, MIN_BLOCKS, geometric_mean, paired_ratio

Rows = list[dict[str, Any]]
Predictions = Mapping[str, Mapping[str, float]]

_PLACE = ("study", "table", "setup", "k", "concurrency", "step_ms", "delay_us")


def law_rows(trials: Sequence[Trial], predictions: Predictions) -> Rows:
    """Each place that was predicted: rates in tokens/s, ``found`` being the geometric mean of its
    ``blocks`` windows with the interval ``low`` to ``high`` (None with one window), and the
    residual found / expected - 1."""
    rates: dict[tuple[Any, ...], list[float]] = {}
    expected: dict[tuple[Any, ...], float] = {}
    for trial in trials:
        law = predictions.get(trial.study, {}).get(trial.id)
        if law and trial.rate:
            place = tuple(getattr(trial, name) for name in _PLACE)
            rates.setdefault(place, []).append(trial.rate)
            expected.setdefault(place, law)
    rows = []
    for place, windows in rates.items():
        found = geometric_mean(windows, ALPHA)
        if found is None:
            continue
        rows.append(
            {
                **dict(zip(_PLACE, place, strict=True)),
                "expected": expected[place],
                "found": found.value,
                "low": found.low,
                "high": found.high,
                "blocks": found.blocks,
                "residual": found.value / expected[place] - 1,
            }
        )
    return rows


def device_rows(rows: Rows) -> Rows:
    """Of each pair and concurrency, the rate with a draft device over that of two replicas."""
    of = {(r["table"], r["concurrency"], r["setup"]): r for r in rows if r["study"] == "devices"}
    found = []
    for (table, concurrency, setup), split in of.items():
        replicas = of.get((table, concurrency, TWINS))
        if replicas is None or not setup.startswith(SPLIT):
            continue
        found.append(
            {
                "table": table,
                "setup": setup,
                "pair": f"{table}{setup.removeprefix(SPLIT)}",
                "concurrency": concurrency,
                "k_draft_device": split["k"],
                "k_replicas": replicas["k"],
                "expected": split["expected"] / replicas["expected"],
                "found": split["found"] / replicas["found"],
            }
        )
    return found


def validation_rows(trials: Sequence[Trial]) -> Rows:
    """Emulated over measured rates by topology and concurrency, paired by blocks; ``cycles`` is the
    same of cycles, which do not depend on how many drafts the texts let pass."""
    rates: dict[tuple[str, int], dict[str, dict[tuple[int, int], float]]] = {}
    found: dict[tuple[str, int], dict[str, list[Trial]]] = {}
    for trial in trials:
        if trial.study == "validation" and trial.rate:
            kinds = rates.setdefault((trial.setup, trial.concurrency), {})
            kinds.setdefault(trial.kind, {})[trial.turn] = trial.rate
            places = found.setdefault((trial.setup, trial.concurrency), {})
            places.setdefault(trial.kind, []).append(trial)
    rows = []
    for (setup, concurrency), kinds in rates.items():
        blocks = sorted(kinds.get("emulated", {}).keys() & kinds.get("measured", {}).keys())
        if not blocks:
            continue
        emulated = [kinds["emulated"][block] for block in blocks]
        measured = [kinds["measured"][block] for block in blocks]
        row: dict[str, Any] = {
            "setup": setup,
            "concurrency": concurrency,
            "blocks": len(blocks),
            "emulated": statistics.geometric_mean(emulated),
            "measured": statistics.geometric_mean(measured),
        }
        row["ratio"] = row["emulated"] / row["measured"]
        of = found[setup, concurrency]
        row["emulated_tokens"] = _tokens_per_cycle(of["emulated"])
        row["measured_tokens"] = _tokens_per_cycle(of["measured"])
        row["cycles"] = row["ratio"] * row["measured_tokens"] / row["emulated_tokens"]
        row["low"] = row["high"] = None
        if len(blocks) >= MIN_BLOCKS:
            ratio = paired_ratio(emulated, measured, ALPHA)
            row["low"], row["high"] = ratio.low, ratio.high
        rows.append(row)
    return rows


def _tokens_per_cycle(trials: Sequence[Trial]) -> float:
    """Of a request, with all its drafts."""
    drafted = sum(trial.drafted for trial in trials)
    return 1 + trials[0].k * sum(trial.accepted for trial in trials) / drafted if drafted else 1.0


def waits(trials: Sequence[Trial]) -> tuple[float, float] | None:
    """Medians over the trials of the p50 and p99 of what emulated waits missed by, µs."""
    found = [trial.missed_us for trial in trials if trial.missed_us is not None]
    if not found:
        return None
    return statistics.median(p50 for p50, _ in found), statistics.median(p99 for _, p99 in found)


def residual(rows: Rows) -> float | None:
    """The median distance of what was found from what was expected, as a share."""
    return statistics.median(abs(row["residual"]) for row in rows) if rows else None


def host_rows(trials: Sequence[Trial], acceptance: float, host: HostCosts) -> Rows:
    """What a cycle took besides its steps, µs, by topology and concurrency: ``found``, the median
    over ``blocks`` windows from ``least`` to ``most``, and ``expected`` by the host's costs, which
    are lines fitted to unified and pdv."""
    cycles = host_cycles(trials, acceptance)
    return [
        {
            "setup": setup,
            "concurrency": clients,
            "blocks": len(blocks),
            "found": statistics.median(blocks.values()),
            "least": min(blocks.values()),
            "most": max(blocks.values()),
            "expected": host.cycle(clients) + messages * host.message(clients),
        }
        for setup, messages in MESSAGES.items()
        for clients, blocks in sorted(cycles.get(setup, {}).items())
    ]
