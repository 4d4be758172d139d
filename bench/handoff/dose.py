"""Dose and response: how a token's time grows with a delay that is added to an edge's messages.

Servers whose messages over an edge arrive x µs later (``--inject-delay``) serve the same requests
in the same blocks. In each block the time per token is y = i + s x, by ordinary least squares over
its doses; what is said of s and i are the means over the blocks with Student's t intervals
(bench/statistics.py), because the doses of one block share what happened in it.

- The slope s counts the handoffs over that edge on a token's critical path (µs per µs): 1 for a
  cycle that waits for each message, less where something else is computed meanwhile.
- The intercept i is a token's time with no delay added.
- With messages that cost nothing it would be i - s h: the line is extended to a delay of -h, where
  h is what a message over that edge took in the block without a delay (encode, wire and decode less
  the time in which its receiver computed; mean).

A message that is held back wakes its receiver twice, so the first microsecond costs more than the
others; the table shows how far the servers without a delay lie from the line.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from bench.handoff.cells import Cells, Timed
from bench.handoff.tables import Rows, markdown
from bench.handoff.variants import Variant
from bench.statistics import ALPHA, Estimate, arithmetic_mean, corrected
from pdv_mp.config import ConfigError
from pdv_mp.lanes.injected_delay import parse_delays

DEFAULT = "draft>verify=0,250,500,1000;verify>draft=0,250,500,1000"

MIN_DOSES = 3
"""A line through two points fits whatever they are."""

UNITS = ("token", "cycle")
ESTIMATES = ("slope", "intercept", "free")

Doses = Mapping[str, Sequence[int]]
"""By edge, µs; the first is 0."""


@dataclass(frozen=True, slots=True)
class Line:
    """Time = ``intercept`` + ``slope`` x delay; ``free``: with messages that cost nothing."""

    slope: Estimate
    intercept: Estimate
    free: Estimate


def parse_doses(text: str) -> dict[str, list[int]]:
    """``draft>verify=0,250,500;verify>draft=0,500,1000`` as µs by edge, in order.

    Raises click.BadParameter for anything else.
    """
    found: dict[str, list[int]] = {}
    for part in text.split(";"):
        edge, _, amounts = part.strip().partition("=")
        given = [amount.strip() for amount in amounts.split(",")]
        try:
            doses = sorted({parse_delays(f"{edge}={amount}")[edge] // 1000 for amount in given})
        except ConfigError as error:
            raise click.BadParameter(str(error).removeprefix("--inject-delay: ")) from error
        if edge in found:
            raise click.BadParameter(f"{edge} is named twice")
        if doses[0] or len(doses) < MIN_DOSES:
            raise click.BadParameter(
                f"{part.strip()!r} does not name {MIN_DOSES} different doses with 0 among them"
            )
        found[edge] = doses
    return found


def dose_variants(base: Variant, doses: Doses) -> dict[tuple[str, int], Variant]:
    """By edge and dose; all edges share the server without a delay."""
    found = {}
    for edge, amounts in doses.items():
        for amount in amounts:
            delay = f"{edge}={amount}"
            delayed = Variant(
                f"{base.name}+inject-delay={delay}",
                base.topology,
                {**base.options, "inject-delay": delay},
            )
            found[edge, amount] = delayed if amount else base
    return found


def fit_line(
    doses: Sequence[float], times: npt.ArrayLike, hops: Sequence[float], alpha: float = ALPHA
) -> Line:
    """``times``: [blocks, doses]; ``hops``: [blocks], what a message took without a delay. All in
    one unit. A single block gives no interval."""
    x = np.asarray(doses, np.float64)
    y = np.asarray(times, np.float64)
    spread = x - x.mean()
    slopes = (y @ spread) / (spread @ spread)
    intercepts = y.mean(axis=1) - slopes * x.mean()
    free = intercepts - slopes * np.asarray(hops, np.float64)
    return Line(_mean(slopes, alpha), _mean(intercepts, alpha), _mean(free, alpha))


def _mean(values: npt.NDArray[np.float64], alpha: float) -> Estimate:
    found = arithmetic_mean(values.tolist(), alpha)
    if found is None:
        raise ValueError("a line needs a block")
    return found


def hop_us(found: Timed, edge: str) -> float:
    """What a message over an edge took on average, without the time in which its receiver computed,
    in µs; 0 if there was none."""
    parts = found.handoffs.get(edge, {"parts": {}})["parts"]
    if "wire" not in parts:
        return 0.0
    total = sum(parts[part]["total_ns"] for part in ("encode", "wire", "decode"))
    busy = parts["busy"]["total_ns"] if "busy" in parts else 0
    return float((total - busy) / parts["wire"]["n"] / 1000)


def dose_rows(variants: Mapping[tuple[str, int], Variant], cells: Cells) -> Rows:
    """One row for each edge, dose, concurrency and block: µs per token and per cycle."""
    return [
        {
            "topology": variant.topology,
            "edge": edge,
            "dose_us": dose,
            "concurrency": concurrency,
            "block": block,
            "us_per_token": found.us_per_token,
            "us_per_cycle": found.us_per_token * found.tokens / found.cycles,
            "hop_us": hop_us(found, edge),
        }
        for (edge, dose), variant in variants.items()
        for (name, concurrency), cell in cells.items()
        if name == variant.name
        for block, found in enumerate(cell.timed, 1)
    ]


def point_table(points: Rows) -> str:
    """The means over the blocks."""
    places: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in points:
        place = (row["edge"], row["concurrency"], row["dose_us"])
        places.setdefault(place, []).append(row)
    head = ("edge", "C", "dose", "blocks", "of a token", "of a cycle")
    body = []
    for place, rows in places.items():
        means = (statistics.mean(row[f"us_per_{unit}"] for row in rows) for unit in UNITS)
        body.append((*place, len(rows), *(f"{mean:.0f}" for mean in means)))
    return markdown(head, body)


def line_rows(points: Rows) -> Rows:
    """By edge, concurrency and unit (token, cycle): the line, in µs, and ``above_us``, by how much
    the servers without a delay lie above it."""
    places = list(dict.fromkeys((row["edge"], row["concurrency"]) for row in points))
    alpha = corrected(ALPHA, len(places) * len(UNITS))
    rows = []
    for edge, concurrency in places:
        chosen = [r for r in points if (r["edge"], r["concurrency"]) == (edge, concurrency)]
        doses = sorted({row["dose_us"] for row in chosen})
        hops = [row["hop_us"] for row in chosen if not row["dose_us"]]
        for unit in UNITS:
            columns = [[r[f"us_per_{unit}"] for r in chosen if r["dose_us"] == d] for d in doses]
            times = np.array(columns).T
            line = fit_line(doses, times, hops, alpha)
            row: dict[str, Any] = {"edge": edge, "concurrency": concurrency, "unit": unit}
            for name in ESTIMATES:
                found = getattr(line, name)
                row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            above = float(times[:, 0].mean()) - line.intercept.value
            row |= {"hop_us": float(np.mean(hops)), "above_us": above, "alpha": alpha}
            rows.append(row)
    return rows


def line_table(rows: Rows) -> str:
    """The lines, in µs."""
    head = ("edge", "C", "of a", "slope", "intercept", "at 0 above it", "hop", "free messages")
    return markdown(
        head,
        (
            (
                *(row["edge"], row["concurrency"], row["unit"]),
                *(_text(row, "slope", ".2f"), _text(row, "intercept", ".0f")),
                *(f"{row['above_us']:+.0f}", f"{row['hop_us']:.0f}", _text(row, "free", ".0f")),
            )
            for row in rows
        ),
    )


def _text(row: dict[str, Any], name: str, form: str) -> str:
    if row[f"{name}_low"] is None:
        return f"{row[name]:{form}}"
    return f"{row[name]:{form}} ({row[f'{name}_low']:{form}}–{row[f'{name}_high']:{form}})"
