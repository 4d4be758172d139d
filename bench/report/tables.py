"""The tables of an analysis, as CSV: :func:`write_tables`.

Long format, one line for each cell, comparison or whatever is its subject; each line begins with
``schema_version``, and every column of a quantity names its unit. An empty field is something
that is not known; a quantile is empty where there were too few samples. The files in the sources'
shape, one for each family of metrics, are parts of ``cells.csv``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.report.cell_rows import (
    Row,
    acceptance_row,
    cell_row,
    estimate_columns,
    latency_row,
    problem_rows,
    process_rows,
    ratio_columns,
    throughput_row,
    utilisation_row,
    with_place,
)
from bench.report.modes import failure_modes, success_modes
from bench.report.summaries import Analysis, Comparison, Estimate
from bench.results.records import SCHEMA_VERSION
from bench.results.store import ResultsError


def write_tables(analysis: Analysis, folder: Path) -> list[Path]:
    """Writes all tables into a folder, which is made; returns their paths.

    A table without lines has its header only. Raises ResultsError if one cannot be written.
    """
    tables = {
        "throughput.csv": [with_place(cell, throughput_row) for cell in analysis.cells],
        "latency.csv": [with_place(cell, latency_row) for cell in analysis.cells],
        "utilisation.csv": [with_place(cell, utilisation_row) for cell in analysis.cells],
        "acceptance.csv": [with_place(cell, acceptance_row) for cell in analysis.cells],
        "cells.csv": [cell_row(cell) for cell in analysis.cells],
        "processes.csv": [row for cell in analysis.cells for row in process_rows(cell)],
        "problems.csv": [row for cell in analysis.cells for row in problem_rows(cell)],
        "comparisons.csv": [comparison_row(found) for found in analysis.comparisons],
        "noise.csv": list(noise_rows(analysis)),
        "success_modes.csv": [mode_row(analysis, found) for found in success_modes(analysis)],
        "failure_modes.csv": [mode_row(analysis, found) for found in failure_modes(analysis)],
        "valley.csv": list(valley_rows(analysis)),
        "recommendation.csv": list(recommendation_rows(analysis)),
    }
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in tables.items():
            path = folder / name
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["schema_version", *_columns(name, rows)])
                writer.writeheader()
                writer.writerows({"schema_version": SCHEMA_VERSION, **row} for row in rows)
            paths.append(path)
    except OSError as error:
        raise ResultsError(f"{error.filename or folder}: {error.strerror}") from error
    return paths


_EMPTY: Mapping[str, tuple[str, ...]] = {
    "processes.csv": ("pair", "candidate", "load", "process"),
    "problems.csv": ("pair", "candidate", "load", "block", "kind", "reason"),
    "comparisons.csv": ("pair", "load", "candidate", "reference", "verdict"),
    "noise.csv": ("pair", "load", "candidate", "twin"),
    "success_modes.csv": ("pair", "load", "candidate", "reference", "cause"),
    "failure_modes.csv": ("pair", "load", "candidate", "reference", "cause"),
    "valley.csv": ("pair", "candidate", "reference", "verdict"),
}
"""Columns of tables that may have no line."""


def _columns(name: str, rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row)) or list(_EMPTY[name])


def comparison_row(found: Comparison) -> Row:
    """One comparison, and its cause."""
    cause = found.cause
    row: Row = {
        "pair": found.pair,
        "load": found.load,
        "candidate": found.candidate,
        "reference": found.reference,
        "verdict": found.verdict,
        **ratio_columns("throughput_ratio", found.ratio),
        "alpha": found.ratio and found.ratio.alpha,
        "blocks": found.blocks,
        "blocks_lost": found.lost,
        "noise_floor_ratio": found.floor if found.floor_known else None,
        "smallest_effect_ratio": found.smallest_effect,
        **ratio_columns("e2e_mean_ratio", found.e2e_ratio),
        "cause_group": cause and cause.group,
        "cause_group_ms_per_token": cause and cause.group_ms,
        "cause_group_ms_per_token_reference": cause and cause.group_ms_reference,
        "ms_per_token": cause and cause.ms_per_token,
        "ms_per_token_reference": cause and cause.ms_per_token_reference,
        "server_cores": cause and cause.cores,
        "server_cores_reference": cause and cause.cores_reference,
        "cause": cause and cause.text,
    }
    return row


def mode_row(analysis: Analysis, found: Comparison) -> Row:
    """A comparison with the run's reference that was decided, as the sources list them."""
    ours = analysis.cell(found.pair, found.candidate, found.load)
    theirs = analysis.cell(found.pair, found.reference, found.load)
    ratio = found.ratio
    row = comparison_row(found)
    change = {
        "throughput_change_percent": ratio and (ratio.estimate - 1) * 100,
        "throughput_change_low_percent": ratio and (ratio.low - 1) * 100,
        "throughput_change_high_percent": ratio and (ratio.high - 1) * 100,
        "e2e_mean_change_percent": _change(ours.e2e.mean, theirs.e2e.mean),
    }
    first = ("pair", "load", "candidate", "reference")
    cells = {
        "concurrency": ours.shape.concurrency,
        "output_tokens_per_s": ours.throughput and ours.throughput.value,
        "output_tokens_per_s_reference": theirs.throughput and theirs.throughput.value,
    }
    return {**{name: row.pop(name) for name in first}, **cells, **change, **row}


def _change(ours: Estimate | None, theirs: Estimate | None) -> float | None:
    if ours is None or theirs is None or not theirs.value:
        return None
    return (ours.value / theirs.value - 1) * 100


def noise_rows(analysis: Analysis) -> Iterator[Row]:
    """Twins against their originals."""
    for found in analysis.noise:
        yield {
            "pair": found.pair,
            "load": found.load,
            "candidate": found.candidate,
            "twin": found.twin,
            **ratio_columns("throughput_ratio", found.ratio),
            "noise_floor_ratio": found.floor,
            "blocks": found.blocks,
            "interval_holds_1": found.holds,
        }


def valley_rows(analysis: Analysis) -> Iterator[Row]:
    """The map of topologies and concurrency: one line for each point, with its valley's verdict."""
    for valley in analysis.valleys:
        contrasts: Row = {}
        for beside in ("few clients", "many clients"):
            ratio = next((c.ratio for c in valley.contrasts if c.beside == beside), None)
            contrasts.update(ratio_columns(f"middle_over_{beside.replace(' ', '_')}_ratio", ratio))
        for point in valley.points:
            yield {
                "pair": valley.pair,
                "candidate": valley.candidate,
                "reference": valley.reference,
                "load": point.load,
                "concurrency": point.concurrency,
                **ratio_columns("throughput_ratio", point.ratio),
                **estimate_columns("orchestration_share", point.orchestration_share),
                **estimate_columns(
                    "orchestration_share_reference", point.orchestration_share_reference
                ),
                "verdict": valley.verdict,
                **contrasts,
                "text": valley.text,
            }


def recommendation_rows(analysis: Analysis) -> Iterator[Row]:
    """One line for each pair and load."""
    for recommendation in analysis.recommendations:
        for choice in recommendation.choices:
            yield {
                "pair": recommendation.pair,
                "load": choice.load,
                "choice": choice.candidate,
                "processes": choice.processes,
                "fastest": choice.fastest,
                **estimate_columns("output_tokens_per_s", choice.throughput),
                "runner_up": choice.runner_up,
                **ratio_columns("throughput_ratio", choice.ratio),
                "shown_to_be_ahead": choice.shown,
            }
