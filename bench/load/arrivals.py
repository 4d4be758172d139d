"""When the requests of an open loop arrive: a renewal process, whatever the server does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_AT_ONCE = 256


def arrival_times(
    rate: float, burstiness: float, generator: np.random.Generator
) -> Iterator[float]:
    """Seconds after the start of the load, ascending, without end.

    The gaps are independent and gamma distributed with mean 1 / ``rate`` and shape ``burstiness``:
    1 is the exponential distribution, a Poisson process; their squared coefficient of variation is
    1 / ``burstiness``, so less comes in bursts and more is more regular.
    """
    now = 0.0
    while True:
        for gap in generator.gamma(burstiness, 1 / (rate * burstiness), _AT_ONCE).tolist():
            now += gap
            yield now
