"""The wait strategies, in rounds in which servers that spin are stopped while others are asked."""

from __future__ import annotations

import json
from pathlib import Path

from bench.ablations.catalogue import WAIT_LOADS, WAIT_VARIANTS
from bench.ablations.picture import Point
from bench.handoff.rounds import Load, measure
from bench.handoff.variants import variants_of
from bench.load.held_out import HeldOut, tokenizer_of
from bench.statistics import ALPHA, MIN_BLOCKS, corrected, paired_ratio
from bench.sweep.environment import machine, source_digest

RATES = "wait.json"
REQUESTS, TOKENS, PROMPT_TOKENS = 2, 64, 128

Rates = dict[str, dict[str, list[float]]]
"""Tokens/s of each round by variant and concurrency."""


def measure_waits(folder: Path, rounds: int) -> Rates:
    """The rates of a run that is there, of the same programs on the same machine, or of one that is
    made now; whole or not at all.

    Raises what bench.handoff.rounds.measure raises, and OSError.
    """
    path = folder / RATES
    facts = {"source": source_digest(), "machine": machine(), "rounds": rounds}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("facts") == json.loads(json.dumps(facts)):
            there: Rates = found["rates"]
            return there
    prompts = HeldOut(tokenizer_of(None)).windows(PROMPT_TOKENS)
    load = Load(prompts, WAIT_LOADS, rounds, REQUESTS, TOKENS)
    measured = measure(variants_of(WAIT_VARIANTS, {}), load, {})
    rates: Rates = {}
    for (variant, concurrency), cell in measured.cells.items():
        rates.setdefault(variant, {})[str(concurrency)] = cell.rates
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"facts": facts, "rates": rates}), encoding="utf-8")
    beside.replace(path)
    return rates


def kept_waits(folder: Path) -> Rates:
    """The rates of a run that is there. Raises OSError if there is none."""
    found = json.loads((folder / RATES).read_text(encoding="utf-8"))
    there: Rates = found["rates"]
    return there


def wait_points(rates: Rates) -> list[Point]:
    """Ratios to blocking waits, paired by rounds; none with too few of them."""
    first, *others = WAIT_VARIANTS
    alpha = corrected(ALPHA, len(others) * len(WAIT_LOADS))
    points = []
    for variant in others:
        for concurrency, mine in rates.get(variant, {}).items():
            if len(mine) < MIN_BLOCKS:
                continue
            ratio = paired_ratio(mine, rates[first][concurrency], alpha)
            verdict = "ahead" if ratio.low > 1 else "behind" if ratio.high < 1 else "no difference"
            value = variant.partition("=")[2]
            points.append(
                Point(value, int(concurrency), ratio.estimate, ratio.low, ratio.high, verdict)
            )
    return points
