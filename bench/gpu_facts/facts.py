"""What a measurement reports, and how it is stored."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Fact:
    """One thing that was measured (``values``, in ``unit``) or found (``text``)."""

    what: str
    unit: str = ""
    values: list[float] = field(default_factory=list)
    text: str = ""

    def __str__(self) -> str:
        """The text, or median, range and number of the values."""
        if not self.values:
            return self.text
        middle, low, high = (
            _rounded(number)
            for number in (statistics.median(self.values), min(self.values), max(self.values))
        )
        spread = "" if len(self.values) == 1 else f" ({low} to {high}, n = {len(self.values)})"
        return f"{middle} {self.unit}{spread}".replace("  ", " ").strip()


@dataclass
class Outcome:
    """What became of a measurement: its facts, why it failed, and how long it took."""

    name: str
    title: str
    facts: list[Fact] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0


class Report:
    """Where a measurement writes its facts, each at once, so that a crash costs only the rest.

    ``quick``: measure less often.
    """

    def __init__(self, path: Path, quick: bool) -> None:
        self.quick = quick
        self._path = path

    def repeats(self, full: int, quick: int) -> int:
        """How often to measure."""
        return quick if self.quick else full

    def numbers(self, what: str, unit: str, values: Sequence[float]) -> None:
        """Something that was measured, once or several times."""
        self._write(Fact(what, unit, [float(f"{value:.5g}") for value in values]))

    def text(self, what: str, text: object) -> None:
        """Something that was found."""
        self._write(Fact(what, text=str(text)))

    def failed(self, error: str) -> None:
        """The measurement ends here."""
        self._append({"error": error})

    def _write(self, fact: Fact) -> None:
        self._append(asdict(fact))

    def _append(self, line: dict[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_report(path: Path) -> tuple[list[Fact], str]:
    """The facts in a report, and the error that ended it."""
    facts, error = [], ""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError:
                break  # the process was killed while it wrote this line
            if "error" in fields:
                error = fields["error"]
            else:
                facts.append(Fact(**fields))
    return facts, error


def _rounded(number: float) -> str:
    return f"{number:.4g}" if abs(number) < 10_000 else f"{number:,.0f}"
