"""Search for the scale of noise at which a pair agrees at a wanted rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.inflate.agreement import Measurement
from bench.inflate.errors import InflateError

_FIRST_SCALE = 0.05
_LARGEST_SCALE = 100.0
_MOST_STEPS = 40


@dataclass(frozen=True, slots=True)
class Found:
    """A scale, the agreement measured there, and the number of measurements it took."""

    scale: float
    measurement: Measurement
    steps: int


def find_scale(
    measure: Callable[[float], Measurement],
    wanted: float,
    tolerance: float,
    report: Callable[[float, Measurement], None],
) -> Found:
    """Bisect until the agreement is within ``tolerance`` of ``wanted``.

    Where single choices make it jump across, a scale whose 95 % interval holds ``wanted`` will do.
    Noise lowers agreement, so that a rate above that of the pair without noise cannot be had:
    InflateError, as for one that not even the strongest noise reaches.
    """
    steps = 0

    def tried(scale: float) -> Found:
        nonlocal steps
        steps += 1
        measurement = measure(scale)
        report(scale, measurement)
        return Found(scale, measurement, steps)

    found = tried(0.0)
    if found.measurement.rate < wanted - tolerance:
        raise InflateError(
            f"draft and verifier agree at {found.measurement.rate:.3f} without noise, and noise "
            f"only lowers that, so {wanted:g} cannot be reached; ask for less, or give one folder "
            "as --from: a model agrees with itself at 1."
        )
    low, high = 0.0, _FIRST_SCALE
    while abs(found.measurement.rate - wanted) > tolerance and found.measurement.rate > wanted:
        if high > _LARGEST_SCALE:
            raise InflateError(
                f"draft and verifier still agree at {found.measurement.rate:.3f} with the "
                f"strongest noise, so {wanted:g} cannot be reached; ask for more."
            )
        low, high = found.scale, high * 2 if found.scale else high
        found = tried(high)
    best = found
    while abs(found.measurement.rate - wanted) > tolerance and steps < _MOST_STEPS:
        middle = (low + high) / 2
        found = tried(middle)
        if found.measurement.rate > wanted:
            low = middle
        else:
            high = middle
        best = min(best, found, key=lambda one: abs(one.measurement.rate - wanted))
    if abs(best.measurement.rate - wanted) > tolerance and not (
        best.measurement.low <= wanted <= best.measurement.high
    ):
        raise InflateError(
            f"the agreement jumps past {wanted:g}: the nearest is {best.measurement.rate:.3f}; ask "
            "for that, or allow a larger --tolerance."
        )
    return Found(best.scale, best.measurement, steps)
