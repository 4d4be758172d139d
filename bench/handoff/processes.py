"""CPU time and context switches of a server's processes, added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench.load.usage import Sample, Spent

Use = Mapping[str, Spent]
"""By process name."""


def between(before: Sample, after: Sample) -> Use:
    """What each process used between two samples."""
    return {name: _plus(end, before.spent[name], -1) for name, end in after.spent.items()}


def total(uses: Iterable[Use]) -> Use:
    """By process, over several times."""
    found: dict[str, Spent] = {}
    for use in uses:
        for name, spent in use.items():
            found[name] = _plus(found.get(name, NOTHING), spent)
    return found


def together(use: Use) -> Spent:
    """Over all processes."""
    found = NOTHING
    for spent in use.values():
        found = _plus(found, spent)
    return found


def _plus(one: Spent, other: Spent, times: int = 1) -> Spent:
    return Spent(
        one.cpu + times * other.cpu,
        one.voluntary + times * other.voluntary,
        one.involuntary + times * other.involuntary,
    )


NOTHING = Spent(0.0, 0, 0)
