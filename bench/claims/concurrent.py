"""Rows of the concurrent test, if the folder has one (bench/concurrent/tables.py)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from bench.results.store import ResultsError

CSV = "concurrent.csv"


@dataclass(frozen=True, slots=True)
class ConcurrentRow:
    """So many ``requests`` at once: the time until all were done, in seconds, and requests/s,
    medians over ``repeats``; None if none was whole. ``is_whole``: whether nothing was refused and
    nothing failed."""

    variant: str
    requests: int
    repeats: int
    time_s: float | None
    requests_per_s: float | None
    is_whole: bool


def read_concurrent(folder: Path) -> list[ConcurrentRow]:
    """The rows of the server that is set up as the documents' was, with chunked prefill and prefix
    caching; empty without such a test. Raises ResultsError for a file that cannot be read."""
    path = folder / CSV
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                ConcurrentRow(
                    variant=row["variant"],
                    requests=int(row["requests_at_once"]),
                    repeats=int(row["repeats"]),
                    time_s=_number(row["time_s"]),
                    requests_per_s=_number(row["requests_per_s"]),
                    is_whole=not int(row["refused"]) + int(row["failed"])
                    and int(row["repeats"]) > 0,
                )
                for row in csv.DictReader(file)
                if (row["chunked_prefill"], row["prefix_caching"]) == ("on", "on")
            ]
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{path} is not a table of the concurrent test: {error}") from error


def _number(text: str) -> float | None:
    return float(text) if text else None
