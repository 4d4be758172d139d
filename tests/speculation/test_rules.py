"""The rules that the configuration names are those that exist."""

from __future__ import annotations

import dataclasses

from pdv_mp.config import SpeculationOptions, option_info
from pdv_mp.speculation.rules import RULES, acceptance_rule
from pdv_mp.speculation.shared_gumbel import SharedGumbel


def test_every_choice_is_a_rule() -> None:
    (field,) = (f for f in dataclasses.fields(SpeculationOptions) if f.name == "acceptance")
    assert set(option_info(field).choices) == set(RULES)
    assert isinstance(acceptance_rule(SpeculationOptions().acceptance), SharedGumbel)
