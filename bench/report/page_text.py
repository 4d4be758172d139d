"""Numbers as a reader wants them."""

from __future__ import annotations

from typing import Any

from bench.report.recommendation import load_text
from bench.report.summaries import Estimate
from bench.results.records import Run
from bench.statistics import Quantile, Ratio

NOTHING = "–"
_THIN = "\u202f"


def number(value: float) -> str:
    """Three digits or more, and no power of ten: ``0.00123``, ``4.57``, ``1 235``."""
    if value == 0 or abs(value) >= 1e15:
        return f"{value:g}"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", _THIN)
    decimals = 2 if abs(value) >= 1 else 3
    if abs(value) < 0.1:
        return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.2e}"
    return f"{value:.{decimals}f}"


def cell_text(value: Any) -> str:
    """What stands in a table."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}".replace(",", _THIN)
    return str(value)


def estimate_text(found: Estimate | Quantile | None) -> str:
    """A value with its interval in brackets."""
    if found is None:
        return NOTHING
    if found.low is None or found.high is None:
        return number(found.value)
    return f"{number(found.value)} ({number(found.low)}–{number(found.high)})"


def share_text(found: Estimate | None) -> str:
    """A share in percent, with its interval in brackets."""
    if found is None:
        return NOTHING
    if found.low is None or found.high is None:
        return f"{found.value:.1%}"
    return f"{found.value:.1%} ({found.low:.1%}–{found.high:.1%})"


def ratio_text(found: Ratio | None) -> str:
    """A ratio with its interval in brackets."""
    if found is None:
        return NOTHING
    return f"{found.estimate:.3f} ({found.low:.3f}–{found.high:.3f})"


def effect_text(ratio: float | None) -> str:
    """How far from 1 a ratio is, in percent."""
    return NOTHING if ratio is None else f"{ratio - 1:.1%}"


def counted(value: int, noun: str) -> str:
    """``1 block``, ``2 blocks``."""
    return f"{value} {noun}" if value == 1 else f"{value} {noun}s"


def load_named(run: Run, name: str) -> str:
    """A load of the run in words."""
    return next(load_text(load) for load in run.loads if load.name == name)
