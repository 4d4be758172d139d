"""The source documents' two rules for choosing between PD and PDV, as they are written there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class VerifierSize(NamedTuple):
    """``billions``: of parameters, a whole number from one on, as models are called by."""

    gigabytes: float
    billions: float


Rule = Callable[[int, VerifierSize], str]
"""From concurrency and the verifier's size to ``pd`` or ``pdv``."""

HEAVY_GB = 7.0
HEAVY_BILLIONS = 34.0


def select_architecture(concurrency: int, verifier_size_gb: float) -> str:
    """The readme's function of that name."""
    if concurrency >= 32:
        return "pdv"
    if concurrency <= 4:
        return "pd"
    return "pdv" if verifier_size_gb > HEAVY_GB else "pd"


def slide(concurrency: int, verifier_billions: float) -> str:
    """The tree of the presentation's slide on deployment."""
    if concurrency >= 32:
        return "pdv"
    if 6 <= concurrency <= 16:
        return "pd"
    return "pdv" if verifier_billions >= HEAVY_BILLIONS else "pd"


RULES: Mapping[str, Rule] = {
    "select_architecture": lambda concurrency, size: select_architecture(
        concurrency, size.gigabytes
    ),
    "slide": lambda concurrency, size: slide(concurrency, size.billions),
}
