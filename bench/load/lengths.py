"""Distributions of lengths in tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.load.errors import WorkloadError

_FORMS = "64, uniform:16-112 or lognormal:MEDIAN,SIGMA such as lognormal:64,0.5"
_REACH = 3.0
"""In a lognormal distribution, longer lengths than this many sigmas above the median are cut."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """``fixed``: ``low``. ``uniform``: all of ``low`` to ``high`` equally often. ``lognormal``: the
    logarithm is normal about that of ``low``, the median, with deviation ``sigma``, and what is
    below 1 or above ``high`` is drawn as 1 or ``high``."""

    kind: Literal["fixed", "uniform", "lognormal"]
    low: int
    high: int
    sigma: float = 0.0

    def draw(self, generator: np.random.Generator) -> int:
        """One length."""
        if self.kind == "fixed":
            return self.low
        if self.kind == "uniform":
            return int(generator.integers(self.low, self.high, endpoint=True))
        return min(max(1, round(generator.lognormal(math.log(self.low), self.sigma))), self.high)

    def __str__(self) -> str:
        if self.kind == "fixed":
            return str(self.low)
        if self.kind == "uniform":
            return f"uniform:{self.low}-{self.high}"
        return f"lognormal:{self.low},{self.sigma:g}"


def fixed(tokens: int) -> Lengths:
    """All are of this length."""
    return Lengths("fixed", tokens, tokens)


def around(tokens: int) -> Lengths:
    """From a quarter to seven quarters of ``tokens``, all equally often: so widely that requests
    which began together do not end, and are not replaced, together."""
    return Lengths("uniform", max(1, tokens // 4), max(1, tokens * 7 // 4))


def lognormal(median: int, sigma: float) -> Lengths:
    """With this median, and this deviation of the logarithm."""
    return Lengths("lognormal", median, math.ceil(median * math.exp(_REACH * sigma)), sigma)


def parse_lengths(text: str) -> Lengths:
    """``64``, ``uniform:16-112`` or ``lognormal:64,0.5``. Raises WorkloadError."""
    kind, _, rest = text.rpartition(":")
    try:
        if kind == "uniform":
            low, high = (int(part) for part in rest.split("-"))
            found = Lengths("uniform", low, high)
        elif kind == "lognormal":
            median, sigma = rest.split(",")
            found = lognormal(int(median), float(sigma))
        elif not kind:
            found = fixed(int(rest))
        else:
            raise ValueError(kind)
    except (ValueError, OverflowError):
        raise WorkloadError(f"{text!r} is not a length such as {_FORMS}") from None
    if not 1 <= found.low <= found.high or not 0 <= found.sigma < math.inf:
        raise WorkloadError(f"{text!r} is not a length of at least 1 such as {_FORMS}")
    return found
