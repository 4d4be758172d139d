"""Sums of what several schedulers say, those that are gone included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ALIKE = ("block_size",)
"""Numbers in a scheduler's answer that are the same for all replicas and are not summed."""

GROWING = ("counters", "batch_totals", "handoffs", "speculation")
"""The parts of a scheduler's answer that only grow, but for what :data:`_PRESENT` names."""

_PRESENT = ("open", "controllers")


def merged(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several schedulers' answers as one: numbers summed, maps merged, lists joined; a flag is true
    if one is, and of anything else the first counts."""
    result: dict[str, Any] = {}
    for value in values:
        for name, item in value.items():
            result[name] = _sum(name, result[name], item) if name in result else item
    return result


def _sum(name: str, one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return merged((one, other))
    if isinstance(one, list) and isinstance(other, list):
        return one + other
    if isinstance(one, bool) and isinstance(other, bool):
        return one or other
    numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
    return one + other if numbers and name not in ALIKE else one


class Departed:
    """What schedulers that died had counted when they were last asked, so that sums over all
    replicas never shrink. ``counts`` has the :data:`GROWING` parts of their answers."""

    def __init__(self) -> None:
        self.counts: dict[str, Any] = {}
        self._latest: dict[int, dict[str, Any]] = {}

    def heard(self, replica: int, answer: dict[str, Any]) -> None:
        """The scheduler of a replica has answered."""
        self._latest[replica] = answer

    def died(self, replica: int) -> None:
        """The process of that scheduler died; its successor counts from 0."""
        answer = self._latest.pop(replica, {})
        growing = {
            part: {name: item for name, item in answer[part].items() if name not in _PRESENT}
            for part in GROWING
            if part in answer
        }
        self.counts = merged((self.counts, growing))
