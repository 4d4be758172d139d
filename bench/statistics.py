"""Intervals of paired measurements, and how far they reach.

A *block* measures every candidate once under the same conditions, so what a slow minute does to one
it does to all. What is compared are the logarithms of a block's ratios, one number for each block:
requests of one run are not independent of each other, blocks nearly are.

- :func:`paired_ratio`: Student's t interval of the mean log ratio (Student, "The probable error of
  a mean", 1908), exponentiated: a ratio of geometric means.
- :func:`corrected`: Bonferroni's correction (Dunn, "Multiple comparisons among means", 1961). All
  intervals of a table then hold at once with the nominal probability; Holm's procedure, which
  rejects a little more, gives tests without intervals.
- :class:`SequentialPlan`: looks at results on the way. Each look spends its own part of alpha by
  the Pocock-like function of Lan and DeMets ("Discrete sequential boundaries for clinical trials",
  1983), α ln(1 + (e - 1) n / N), and the parts add up to alpha. So all looks' intervals hold at
  once, and those at which a run stops hold whatever made it stop.
- :func:`quantile`: with the interval of order statistics (Hahn and Meeker, "Statistical Intervals",
  1991), which no assumption on the distribution is needed for, and only from enough samples.
- :func:`pooled_quantile`: of requests of several blocks, which are alike within a block. Its
  interval is the wider of that one and of Woodruff's ("Confidence intervals for medians and other
  position measures", 1952), which lets blocks differ.
- :func:`ratio_of_sums`: means over requests, and shares, with intervals over blocks (the ratio
  estimator of Cochran, "Sampling Techniques", 1977, section 6.3, and Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

Floats = npt.NDArray[np.float64]

ALPHA = 0.05
"""Intervals are 95 % intervals."""

MIN_BLOCKS = 8
"""Fewer blocks are not compared: the t interval then rests on its assumption of normality."""

POWER = 0.8
"""With this probability the smallest effect that is named would have been found."""

LOOKS = (8, 12, 16, 24, 32, 48, 64)
"""Numbers of blocks after which a run may look at its intervals and stop."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio with its interval. ``deviation``: of the blocks' log ratios; ``alpha``: the chance
    that the interval does not hold the true ratio."""

    estimate: float
    low: float
    high: float
    blocks: int
    deviation: float
    alpha: float

    @property
    def half_width(self) -> float:
        """Of the interval of the log ratio."""
        return math.log(self.high / self.low) / 2

    @property
    def smallest_effect(self) -> float:
        """The true ratio, above 1, that such blocks would have told from 1 with :data:`POWER`."""
        return smallest_effect(self.deviation, self.blocks, self.alpha)


def paired_ratio(values: Sequence[float], reference: Sequence[float], alpha: float) -> Ratio:
    """``values`` over ``reference``, pair by pair; two pairs or more, all numbers positive.

    Raises ValueError otherwise.
    """
    if len(values) != len(reference) or len(values) < 2:
        raise ValueError("a paired comparison needs two pairs or more")
    if min(*values, *reference) <= 0:
        raise ValueError("only positive numbers have a ratio")
    logs = np.log(np.asarray(values, np.float64) / np.asarray(reference, np.float64))
    mean, deviation = float(logs.mean()), float(logs.std(ddof=1))
    reach = _t_quantile(alpha, len(logs)) * deviation / math.sqrt(len(logs))
    low, middle, high = np.exp([mean - reach, mean, mean + reach]).tolist()
    return Ratio(middle, low, high, len(logs), deviation, alpha)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its interval over ``blocks`` values; ``low`` and ``high`` are None with one."""

    value: float
    low: float | None
    high: float | None
    blocks: int

    def __str__(self) -> str:
        """With two digits, as ratios and shares are written in tables."""
        if self.low is None or self.high is None:
            return f"{self.value:.2f} (once)"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def geometric_mean(values: Sequence[float], alpha: float) -> Estimate | None:
    """Of positive numbers, one for each block; None without any."""
    if not len(values):
        return None
    logs = np.log(np.asarray(values, np.float64))
    middle = float(logs.mean())
    if len(logs) < 2:
        return Estimate(math.exp(middle), None, None, 1)
    reach = _t_quantile(alpha, len(logs)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Estimate(math.exp(middle), math.exp(middle - reach), math.exp(middle + reach), len(logs))


_MOST_REACH = 100.0
"""Of a logarithm; beyond it nothing is known, and exponentials overflow in the end."""


def ratio_of_sums(
    numerators: Sequence[float], denominators: Sequence[float], alpha: float
) -> Estimate | None:
    """sum of numerators / sum of denominators, one of each for a block: a mean over requests if
    these are a block's total and its count. No numerator is negative; blocks without a positive
    denominator do not count, and without any there is None.

    The interval is that of the logarithm, so it holds no negative number.
    """
    above = np.asarray(numerators, np.float64)
    below = np.asarray(denominators, np.float64)
    filled = below > 0
    above, below = above[filled], below[filled]
    if not len(below):
        return None
    value = float(above.sum() / below.sum())
    if len(below) < 2:
        return Estimate(value, None, None, 1)
    if not value:
        return Estimate(0.0, 0.0, 0.0, len(below))
    reach = min(_ratio_reach(above, below, alpha) / value, _MOST_REACH)
    return Estimate(value, value * math.exp(-reach), value * math.exp(reach), len(below))


def arithmetic_mean(values: Sequence[float], alpha: float) -> Estimate | None:
    """Of values that may have any sign, with Student's t interval; None without any."""
    found = np.asarray(values, np.float64)
    if not len(found):
        return None
    value = float(found.mean())
    if len(found) < 2:
        return Estimate(value, None, None, 1)
    reach = _t_quantile(alpha, len(found)) * float(found.std(ddof=1)) / math.sqrt(len(found))
    return Estimate(value, value - reach, value + reach, len(found))


def _ratio_reach(above: Floats, below: Floats, alpha: float) -> float:
    """Half the interval of sum of ``above`` / sum of ``below``, from the blocks' residuals."""
    blocks, total = len(below), float(below.sum())
    residuals = above - above.sum() / total * below
    spread = float(np.square(residuals).sum()) * blocks / (blocks - 1)
    return _t_quantile(alpha, blocks) * math.sqrt(spread) / total


def corrected(alpha: float, comparisons: int) -> float:
    """Alpha of each of so many intervals that hold at once with probability 1 - ``alpha``."""
    return alpha / max(1, comparisons)


@lru_cache(maxsize=256)
def _t_quantile(alpha: float, blocks: int) -> float:
    return float(stats.t.ppf(1 - alpha / 2, blocks - 1))


@lru_cache(maxsize=256)
def _shift_found(alpha: float, blocks: int, power: float) -> float:
    """The mean, in standard errors, at which the two-sided t test has this power."""
    limit = _t_quantile(alpha, blocks)

    def lacking(shift: float) -> float:
        above = stats.nct.sf(limit, blocks - 1, shift)
        below = stats.nct.cdf(-limit, blocks - 1, shift)
        return float(above + np.nan_to_num(below)) - power

    return float(optimize.brentq(lacking, 0.0, 4 * limit + 10))


def smallest_effect(
    deviation: float, blocks: int, alpha: float = ALPHA, power: float = POWER
) -> float:
    """The smallest true ratio, above 1, that so many blocks tell from 1 with this probability.

    ``deviation``: of the blocks' log ratios. From the noncentral t distribution.
    """
    return math.exp(_shift_found(alpha, blocks, power) * deviation / math.sqrt(blocks))


@dataclass(frozen=True, slots=True)
class SequentialPlan:
    """When a run of at most ``blocks`` blocks looks at its intervals, and with which alpha each
    look may be wrong; the parts add up to ``alpha``."""

    blocks: int
    alpha: float = ALPHA

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of blocks; the last one is all of them."""
        return (*(count for count in LOOKS if count < self.blocks), self.blocks)

    def alpha_at(self, look: int) -> float:
        """The part of alpha for a look before the last block."""
        before = max((count for count in self.looks if count < look), default=0)
        return self._spent(look) - self._spent(before)

    def alpha_at_end(self, blocks: int, looked: bool) -> float:
        """What is left of alpha after so many blocks when the run ends with them.

        ``looked``: whether looks were taken on the way. Their alpha is gone; a run that only ended
        because its time was over may spend all that is left, wherever that was.
        """
        if not looked:
            return self.alpha
        return self.alpha - self._spent(max((n for n in self.looks if n < blocks), default=0))

    def _spent(self, blocks: int) -> float:
        return self.alpha * math.log1p((math.e - 1) * min(1.0, blocks / self.blocks))


@dataclass(frozen=True, slots=True)
class Quantile:
    """A sample quantile and its 95 % interval."""

    value: float
    low: float
    high: float


def samples_needed(q: float, alpha: float = ALPHA) -> int:
    """The fewest samples whose extremes enclose quantile ``q``: 6 for p50, 72 for p95, 368 for
    p99."""
    return math.ceil(math.log(alpha / 2) / math.log(max(q, 1 - q)))


@lru_cache(maxsize=4096)
def _ranks(count: int, q: float, alpha: float) -> tuple[int, int]:
    """Which of so many ordered samples, the first being 1, enclose the quantile."""
    low, high = stats.binom.ppf([alpha / 2, 1 - alpha / 2], count, q)
    return int(low), int(high) + 1


def quantile(samples: Sequence[float], q: float, alpha: float = ALPHA) -> Quantile | None:
    """Quantile ``q`` of independent samples; None if there are too few to say anything of it."""
    count = len(samples)
    if count < samples_needed(q, alpha):
        return None
    ordered = np.sort(np.asarray(samples, np.float64))
    low, high = _ranks(count, q, alpha)
    return Quantile(
        float(np.quantile(ordered, q)), float(ordered[low - 1]), float(ordered[high - 1])
    )


def pooled_quantile(blocks: Sequence[Floats], q: float, alpha: float = ALPHA) -> Quantile | None:
    """Quantile ``q`` of the samples [n] of all blocks together; None if they are too few.

    Samples of a block have its slow minutes in common, so order statistics alone would give too
    narrow an interval. Woodruff's takes the share of samples below the quantile, with its interval
    over blocks, and reads the samples' quantiles at both ends of that.
    """
    together = np.concatenate([*blocks, np.empty(0)])
    found = quantile(together.tolist(), q, alpha)
    filled = [block for block in blocks if len(block)]
    if found is None or len(filled) < 2:
        return found
    below = np.asarray([np.count_nonzero(block <= found.value) for block in filled], np.float64)
    sizes = np.asarray([len(block) for block in filled], np.float64)
    reach = _ratio_reach(below, sizes, alpha)
    ends = np.quantile(together, [max(0.0, q - reach), min(1.0, q + reach)])
    return Quantile(found.value, min(found.low, float(ends[0])), max(found.high, float(ends[1])))
