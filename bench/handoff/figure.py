"""Stacked bars: where a token's time goes in each topology."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.handoff.states import STATES
from pdv_mp.topology_rows import STAGES

COLOURS = {
    "prefill": "#1b4f72",
    "draft": "#2e86c1",
    "verify": "#85c1e9",
    "encode": "#7b241c",
    "wire": "#c0392b",
    "decode": "#e6a49c",
    "inbox": "#b9770e",
    "batch": "#f0b429",
    "publish": "#f7dc6f",
    "text": "#6c3483",
    "waiting": "#d5d8dc",
}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel for each concurrency, one bar for each topology, in ms per token of a request."""
    concurrencies = list(dict.fromkeys(row["concurrency"] for row in rows))
    figure = Figure(figsize=(3.4 * len(concurrencies) + 2.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(concurrencies), squeeze=False)[0]
    for panel, concurrency in zip(panels, concurrencies, strict=True):
        chosen = [row for row in rows if row["concurrency"] == concurrency]
        names = [row["topology"] for row in chosen]
        bottoms = [0.0] * len(chosen)
        for state in STATES:
            heights = [row[f"{state}_us_per_token"] / 1000 for row in chosen]
            label = f"{state} compute" if state in STAGES else state
            panel.bar(names, heights, 0.7, bottoms, color=COLOURS[state], label=label)
            bottoms = [low + high for low, high in zip(bottoms, heights, strict=True)]
        requests = "request" if concurrency == 1 else "requests"
        panel.set_title(f"{concurrency} {requests} at a time")
        panel.set_ylabel("ms per token of a request")
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)
