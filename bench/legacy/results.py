"""What a run of the legacy window found, and the files that it leaves.

``legacy/`` holds the raw records (bench/results/store.py); ``legacy.csv``, ``legacy.json`` and
``legacy.md`` are made of them by :func:`rebuild`.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bench.legacy.apportioning import Apportioning, apportion
from bench.legacy.counts import LegacyCell, Side, count_cell
from bench.results.store import ResultsError, ResultsFolder
from bench.statistics import ALPHA, MIN_BLOCKS, Ratio, paired_ratio

SCHEMA_VERSION = 1
"""Of ``legacy.json`` and ``legacy.csv``."""

RAW, CSV, JSON, MARKDOWN = "legacy", "legacy.csv", "legacy.json", "legacy.md"
BOUNDED, UNBOUNDED = "bounded", "unbounded"

_Corner = tuple[str, str]
"""Topology and admission."""

NOBODY = 0.5
"""Requests that are taken to have completed where none did, so that there is a ratio at all."""


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured. Times in seconds, rates per second.

    ``reference``, ``candidate``: topologies; the sources compared the reference with unbounded
    admission to the candidate with bounded admission. ``sides``: candidates of the raw records.
    ``capacities``: tokens/s of each server in a closed loop of as many clients as it admits;
    ``capacity``: their geometric mean; ``alone``: of one client. ``overload``: as it was planned.
    """

    pair: str
    reference: str
    candidate: str
    sides: dict[str, Side]
    window: float
    arriving: float
    rate: float
    tokens: int
    prompt_tokens: int
    overload: float
    capacity: float
    capacities: dict[str, float]
    alone: float
    first_tokens: float
    seed: int


class Interval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The candidate, bounded, over the reference, unbounded, by one metric.

    ``at_least``: in some block no request of the reference completed, and half of one was counted.
    ``low``, ``high``: the 95 % interval over ``blocks``, None if there are not ``enough_blocks``
    for one.
    """

    ratio: float
    low: float | None
    high: float | None
    blocks: int
    enough_blocks: bool
    at_least: bool


class Legacy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``legacy.json``. The comparisons are None if no block has all four cells."""

    schema_version: int
    facts: Facts
    cells: list[LegacyCell]
    legacy: Interval | None = None
    honest: Interval | None = None
    legacy_parts: Apportioning | None = None
    honest_parts: Apportioning | None = None


def derive(folder: ResultsFolder) -> Legacy:
    """All of it from the raw records. Raises ResultsError if they are not those of such a run."""
    facts = read_facts(folder)
    cells = [
        count_cell(cell, facts.sides[cell.candidate], folder.requests(cell))
        for cell in folder.cells()
    ]
    return compare(facts, cells)


def read_facts(folder: ResultsFolder) -> Facts:
    """The facts of a run. Raises ResultsError if it is none of this kind."""
    try:
        return msgspec.convert(folder.run().workload.get("legacy"), Facts)
    except msgspec.ValidationError as error:
        raise ResultsError(f"{folder.path} holds no legacy window: {error}") from error


def compare(facts: Facts, cells: list[LegacyCell]) -> Legacy:
    """The comparisons, over the blocks that have all four cells."""
    by_block: dict[int, dict[_Corner, LegacyCell]] = {}
    for cell in cells:
        if cell.counts and cell.honest_tokens_per_s:
            by_block.setdefault(cell.block, {})[cell.topology, cell.admission] = cell
    whole = [found for _, found in sorted(by_block.items()) if len(found) == len(facts.sides)]
    start, end = (facts.reference, UNBOUNDED), (facts.candidate, BOUNDED)
    if not whole:
        return Legacy(schema_version=SCHEMA_VERSION, facts=facts, cells=cells)
    nothing = NOBODY * facts.tokens / facts.window
    legacy = [
        {corner: cell.legacy_tokens_per_s or nothing for corner, cell in block.items()}
        for block in whole
    ]
    honest = [
        {corner: cell.honest_tokens_per_s for corner, cell in block.items()} for block in whole
    ]
    nobody = any(not block[start].completed for block in whole)
    return Legacy(
        schema_version=SCHEMA_VERSION,
        facts=facts,
        cells=cells,
        legacy=_interval(legacy, start, end, nobody),
        honest=_interval(honest, start, end, False),
        legacy_parts=_parts(legacy, start, end),
        honest_parts=_parts(honest, start, end),
    )


def _parts(blocks: Sequence[Mapping[_Corner, float]], start: _Corner, end: _Corner) -> Apportioning:
    means = {
        corner: math.exp(statistics.fmean(math.log(block[corner]) for block in blocks))
        for corner in blocks[0]
    }
    return apportion(means, start, end)


def _interval(
    blocks: Sequence[Mapping[_Corner, float]], start: _Corner, end: _Corner, at_least: bool
) -> Interval:
    values, reference = [block[end] for block in blocks], [block[start] for block in blocks]
    found: Ratio | None = paired_ratio(values, reference, ALPHA) if len(values) > 1 else None
    enough = found is not None and len(values) >= MIN_BLOCKS
    return Interval(
        ratio=values[0] / reference[0] if found is None else found.estimate,
        low=found.low if found and enough else None,
        high=found.high if found and enough else None,
        blocks=len(values),
        enough_blocks=enough,
        at_least=at_least,
    )


def has_raw(folder: Path) -> bool:
    """Whether a legacy window was measured into this folder."""
    return ResultsFolder(folder / RAW).exists


def rebuild(folder: Path) -> Legacy:
    """Makes the derived files of a folder from its raw records. Raises ResultsError."""
    from bench.legacy.tables import as_markdown

    found = derive(ResultsFolder(folder / RAW))
    try:
        text = msgspec.json.format(msgspec.json.encode(found)) + b"\n"
        (folder / JSON).write_bytes(text)
        _write_csv(folder / CSV, found.cells)
        (folder / MARKDOWN).write_text(as_markdown(found), encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{error.filename}: {error.strerror}") from error
    return found


def _write_csv(path: Path, cells: Sequence[LegacyCell]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["schema_version", *LegacyCell.__struct_fields__])
        for cell in cells:
            writer.writerow([SCHEMA_VERSION, *msgspec.structs.astuple(cell)])
