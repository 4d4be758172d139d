"""The acceptance rules by the names that ``--acceptance`` gives them."""

from __future__ import annotations

from pdv_mp.speculation.acceptance import AcceptanceRule
from pdv_mp.speculation.rejection import RejectionSampling
from pdv_mp.speculation.shared_gumbel import SharedGumbel

RULES: dict[str, type[AcceptanceRule]] = {
    "gumbel": SharedGumbel,
    "rejection": RejectionSampling,
}


def acceptance_rule(name: str) -> AcceptanceRule:
    """The rule of this name; the names are those in config.SpeculationOptions."""
    return RULES[name]()
