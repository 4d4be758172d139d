"""A picture, the numbers it shows, and the files of both."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.report.figures.style import FONT, settings
from bench.results.records import SCHEMA_VERSION

DPI = 150
"""Of the PNG."""

FALLBACKS = f"'{FONT}', 'Helvetica Neue', Arial, sans-serif"
"""The fonts of an SVG's text."""


@dataclass(frozen=True)
class Picture:
    """``name``: of its files. ``title``: the one finding that it shows. ``alt``: what it shows, for
    those who do not see it. ``caption``: how to read it. ``columns`` and ``rows``: its numbers.
    """

    name: str
    title: str
    alt: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    figure: Figure = field(repr=False)

    def write(self, folder: Path) -> Drawn:
        """Its PNG, SVG and CSV, the same bytes each time; raises OSError."""
        svg = io.BytesIO()
        png = io.BytesIO()
        with settings():
            # The layout is solved once, for both files.
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")
            self.figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
            self.figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        content = _compact(svg.getvalue().decode("utf-8")).encode("utf-8")
        (folder / f"{self.name}.svg").write_bytes(content)
        (folder / f"{self.name}.png").write_bytes(png.getvalue())
        with (folder / f"{self.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["schema_version", *self.columns])
            writer.writerows([SCHEMA_VERSION, *map(_cell, row)] for row in self.rows)
        encoded = base64.b64encode(content).decode("ascii")
        return Drawn(self, f"data:image/svg+xml;base64,{encoded}")


@dataclass(frozen=True)
class Drawn:
    """A picture whose files are written; ``url``: all of it, for the page."""

    picture: Picture
    url: str


def _compact(svg: str) -> str:
    """The same picture, less than half as long: two decimals of a point, no indentation and no
    comments, each style written once; with fonts that are narrower where the font is missing."""
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    svg = re.sub(r"(\.\d\d)\d+", r"\1", svg).replace(f"'{FONT}'", FALLBACKS)
    classes: dict[str, str] = {}

    def named(found: re.Match[str]) -> str:
        return f' class="{classes.setdefault(found[1], f"s{len(classes)}")}"'

    svg = re.sub(r' style="([^"]*)"', named, svg)
    rules = "".join(f".{name}{{{style}}}" for style, name in classes.items())
    return svg.replace("</style>", f"{rules}</style>", 1)


def _cell(value: Any) -> Any:
    """Floats in full, so that what is read back is what was drawn; None as nothing."""
    return repr(value) if isinstance(value, float) else value
