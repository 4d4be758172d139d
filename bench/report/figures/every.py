"""All pictures of a report, in the order of the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.legacy.results import Legacy
from bench.report.figures import (
    acceptance,
    heatmap,
    latency,
    legacy,
    orchestration,
    pareto,
    throughput,
    token_time,
    utilisation,
)
from bench.report.figures.picture import Drawn, Picture
from bench.report.figures.style import settings
from bench.report.figures.view import View
from bench.report.summaries import Analysis
from bench.results.records import Run

OF_THE_SOURCES = (
    "throughput_comparison",
    "latency_comparison",
    "gpu_utilization",
    "acceptance_rate",
    "improvement_heatmap",
)
"""The pictures of the source documents, by their names."""


def draw_all(
    analysis: Analysis, legacy_window: tuple[Legacy, Run] | None, folder: Path
) -> dict[str, Drawn]:
    """Draws what there are numbers for and writes it into a folder, which is made; by name.

    Only closed loops have a place on an axis of concurrency: a run without any has no such picture.
    ``legacy_window``: with the run that it was taken from. Raises OSError.
    """
    view = View(analysis)
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Picture | None] = []
    with settings():
        if view.closed:
            found += [throughput.draw(view), latency.draw(view), utilisation.draw(view)]
            found.append(acceptance.draw(view))
        if len(view.candidates) > 1:
            found.append(heatmap.draw(view))
        found.append(token_time.draw(view))
        if view.closed:
            found += [orchestration.draw(view), pareto.draw(view)]
        if legacy_window is not None:
            found.append(legacy.draw(view, *legacy_window))
    return {picture.name: picture.write(folder) for picture in _there(found)}


def _there(found: Sequence[Picture | None]) -> list[Picture]:
    return [picture for picture in found if picture is not None]
