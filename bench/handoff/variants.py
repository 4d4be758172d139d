"""What is compared: topologies, and topologies with options of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.arguments import named

TOPOLOGIES = ("unified", "pd", "pdv", "baseline")
"""The first that is measured is the reference."""

DEFAULTS = {"kv-handoff": "pool", "wait": "block"}
"""What a server without the option does."""

SPLIT = ("pd", "pdv")
_OF_SPLIT = ("kv-handoff=copy", "kv-handoff=handle", "wait=spin", "wait=hybrid")

EVERYTHING = (*TOPOLOGIES, *(f"{name}+{option}" for name in SPLIT for option in _OF_SPLIT))
"""The topologies, and those with messages between workers in every way to hand on KV and to wait.
"""


@dataclass(frozen=True, slots=True)
class Variant:
    """``options``: those of ``pdv-launch`` that it has, by name as on a command line."""

    name: str
    topology: str
    options: Mapping[str, str] = field(default_factory=dict)

    def value(self, option: str) -> str:
        """What it does about one of :data:`DEFAULTS`."""
        return self.options.get(option, DEFAULTS[option])

    @property
    def spins(self) -> bool:
        """Whether it takes a core even while it has nothing to do."""
        return self.value("wait") == "spin"


def variants_of(names: Iterable[str], common: Mapping[str, str]) -> list[Variant]:
    """By names such as ``pdv+wait=spin``. Raises click.BadParameter for an option without a
    value."""
    found = []
    for name in names:
        topology, own = named(name)
        options = {key.replace("_", "-"): value for key, value in {**common, **own}.items()}
        found.append(Variant(name, topology, options))
    return found


def families(variants: Sequence[Variant], option: str) -> list[list[Variant]]:
    """Those that differ in nothing but ``option``, where there are several; the one with the
    default comes first. Without it there is nothing to compare with."""
    groups: dict[tuple[str, frozenset[tuple[str, str]]], dict[str, Variant]] = {}
    for variant in variants:
        others = frozenset((k, v) for k, v in variant.options.items() if k != option)
        groups.setdefault((variant.topology, others), {})[variant.value(option)] = variant
    default = DEFAULTS[option]
    return [
        [found[default], *(other for value, other in found.items() if value != default)]
        for found in groups.values()
        if default in found and len(found) > 1
    ]
