"""How pictures look: a candidate has one colour, marker and line style in all of them.

Colours are Okabe and Ito's ("Color universal design", 2008), told apart with any colour vision.
They go by a candidate's place in ``run.candidates``, never by its name; a twin looks like what it
is a twin of.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from bench.results.records import Candidate

WIDTH = 9.6
"""Inches of every picture, the width of the page's text."""

LEGEND_COLUMNS = 6

FONT = "DejaVu Sans"
"""Comes with matplotlib; text of an SVG stays text."""

INK, MUTED, GRID = "#1a1a1a", "#595959", "#dddddd"
SMALL, NORMAL, TITLE = 8.0, 9.0, 12.0

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (5, 1, 1, 1)), (0, (1, 1)))

_SETTINGS: dict[str, Any] = {
    "font.family": FONT,
    "font.size": NORMAL,
    "axes.titlesize": NORMAL,
    "axes.labelsize": NORMAL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "pdv-bench",
    "svg.fonttype": "none",
}


@dataclass(frozen=True, slots=True)
class Look:
    """Of a candidate, in every picture."""

    colour: str
    marker: str
    dash: Any

    @property
    def text(self) -> str:
        """The colour, darker, for its name."""
        return "#" + "".join(f"{round(0.75 * 255 * part):02x}" for part in to_rgb(self.colour))

    @property
    def line(self) -> dict[str, Any]:
        """What ``Axes.plot`` and ``Axes.errorbar`` take."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.dash,
            "markersize": 5.5,
            "linewidth": 1.6,
        }


def looks(candidates: Sequence[Candidate]) -> dict[str, Look]:
    """The look of each candidate by name."""
    own = [candidate.name for candidate in candidates if candidate.twin_of is None]
    found = {
        name: Look(
            _COLOURS[place % len(_COLOURS)],
            _MARKERS[place % len(_MARKERS)],
            _DASHES[place % len(_DASHES)],
        )
        for place, name in enumerate(own)
    }
    for candidate in candidates:
        if candidate.twin_of in found:
            found[candidate.name] = found[candidate.twin_of]
    return found


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """matplotlib's settings while a picture is drawn and while it is written."""
    with mpl.rc_context():
        mpl.rcdefaults()
        settings_of: dict[Any, Any] = mpl.rcParams  # any version types its keys in its own way
        settings_of.update(_SETTINGS)
        yield


def new_figure(title: str, footer: str, height: float, legend_rows: int = 0) -> Figure:
    """An empty picture with its finding above and its footer below; height in inches.

    ``legend_rows``: for which :func:`legend_below` has room.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    lines = textwrap.wrap(_kept_together(title), round(WIDTH * 9.6))
    above = (0.1 + 0.21 * len(lines)) / height
    under = (_footer_height(footer) + 0.24 * legend_rows) / height
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.set(rect=(0.008, under, 0.984, 1.0 - above - under), wspace=0.03)  # type: ignore[call-arg]
    figure.text(
        0.008,
        1 - 0.06 / height,
        "\n".join(lines),
        fontsize=TITLE,
        fontweight="bold",
        va="top",
        ha="left",
    )
    text = "\n".join(_footer_lines(footer))
    figure.text(0.008, 0.05 / height, text, fontsize=SMALL, color=MUTED, va="bottom", ha="left")
    return figure


def legend_below(
    figure: Figure,
    footer: str,
    handles: Sequence[Any],
    labels: Sequence[str],
    columns: int = LEGEND_COLUMNS,
) -> None:
    """A legend of one or more rows between the axes and the footer."""
    figure.legend(
        handles,
        labels,
        loc="lower right",
        bbox_to_anchor=(0.995, _footer_height(footer) / figure.get_figheight()),
        ncols=columns,
        frameon=False,
        borderpad=0.0,
        columnspacing=1.4,
    ).set_in_layout(False)


def _footer_lines(footer: str) -> list[str]:
    return textwrap.wrap(footer, round(WIDTH * 15.4))


def _footer_height(footer: str) -> float:
    return 0.08 + 0.15 * len(_footer_lines(footer))


def _kept_together(text: str) -> str:
    """With spaces at which no line ends around equals signs."""
    return text.replace(" = ", "\u00a0=\u00a0")


def concurrency_axis(axes: Axes, concurrencies: Sequence[int], label: bool = True) -> None:
    """Concurrency, on log2, with a tick at each that was measured and a number where there is
    room."""
    axes.set_xscale("log", base=2)
    known = sorted(set(concurrencies))
    low, high = known[0], known[-1]
    # The last one stands at the end of the lines, where the eye is: it has its number first.
    chosen: list[int] = []
    span = max(log2(high / low), 1.0)
    for value in sorted(known, key=lambda c: (c != high, c != low, c & (c - 1) != 0, c)):
        if all(abs(log2(value / other)) > 0.055 * span for other in chosen):
            chosen.append(value)
    axes.xaxis.set_major_locator(FixedLocator(sorted(chosen)))
    axes.xaxis.set_major_formatter(FixedFormatter([str(c) for c in sorted(chosen)]))
    axes.xaxis.set_minor_locator(
        FixedLocator([c for c in known if c not in chosen])
        if len(known) > len(chosen)
        else NullLocator()
    )
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, place: ""))
    axes.set_xlim(low / 2 ** (0.06 * span), high * 2 ** (0.06 * span))
    if label:
        axes.set_xlabel("clients at a time (concurrency)")


def plain_numbers(value: float, place: object = None) -> str:
    """A tick's number without powers of ten: 0.5, 20, 1 500."""
    if value >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:g}"


def say_beside(axes: Axes, x: float, y: float, text: str) -> None:
    """A small text to the right of a bar's end."""
    axes.annotate(
        text,
        (x, y),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
        color=INK,
        linespacing=1.0,
    )
