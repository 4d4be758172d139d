"""Which part of a ratio is due to admission, which to topology, which to both at once."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec


class Apportioning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logarithms of ratios between the corners of a 2 x 2 of admission and topology.

    ``total``: from the reference with its admission to the other topology with the other admission.
    ``admission``, ``topology``: their Shapley values, the mean of both orders in which the two can
    be exchanged (Shapley, "A value for n-person games", 1953); they add up to ``total``.
    ``admission_alone``, ``topology_alone``: of exchanging that one only; with ``interaction``, what
    both together do beyond that, they add up to ``total``, too.
    """

    total: float
    admission: float
    topology: float
    admission_alone: float
    topology_alone: float
    interaction: float

    @property
    def admission_share(self) -> float | None:
        """Of the total; None if there is nothing to share."""
        return self.admission / self.total if self.total else None


def apportion(
    rates: Mapping[tuple[str, str], float], start: tuple[str, str], end: tuple[str, str]
) -> Apportioning:
    """Of positive rates by (topology, admission), of the four corners that ``start`` and ``end``
    span."""
    (reference, admission), (other, changed) = start, end
    log = {corner: math.log(rate) for corner, rate in rates.items()}
    origin = log[reference, admission]
    admission_alone = log[reference, changed] - origin
    topology_alone = log[other, admission] - origin
    total = log[other, changed] - origin
    interaction = total - admission_alone - topology_alone
    return Apportioning(
        total=total,
        admission=admission_alone + interaction / 2,
        topology=topology_alone + interaction / 2,
        admission_alone=admission_alone,
        topology_alone=topology_alone,
        interaction=interaction,
    )
