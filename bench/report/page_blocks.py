"""What a page consists of; the template (report.html.jinja) knows how each looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from bench.report.page_text import cell_text

LONG = 36
"""Letters of a text that may break within a table."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Text; ``style``: a class of style.css."""

    kind: ClassVar[str] = "paragraph"
    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Lead:
    """What is to be read first."""

    kind: ClassVar[str] = "lead"
    sentences: Sequence[str]


@dataclass(frozen=True, slots=True)
class Heading:
    """Within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Things one below the other."""

    kind: ClassVar[str] = "listing"
    entries: Sequence[str]


@dataclass(frozen=True, slots=True)
class Definitions:
    """Terms and what they mean."""

    kind: ClassVar[str] = "definitions"
    terms: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Code:
    """A text as it was typed; ``label``: what it is."""

    kind: ClassVar[str] = "code"
    text: str
    label: str


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers, the first of each its name. ``folded``: what it says where it is
    closed at first; empty: it is not."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    values: Sequence[Sequence[Any]]
    folded: str = ""

    @property
    def rows(self) -> list[list[str]]:
        """The values as texts."""
        return [[cell_text(value) for value in row] for row in self.values]

    @cached_property
    def styles(self) -> list[str]:
        """The class of each column: numbers are set to the right, long texts may break."""
        return [self._style(column) for column in range(len(self.columns))]

    def _style(self, column: int) -> str:
        found = [row[column] for row in self.values if row[column] is not None]
        if found and all(type(value) in (int, float) for value in found):
            return "number"
        return "long" if any(len(str(value)) > LONG for value in found) else ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture; ``url``: all of it; ``folder``: where its files are, relative to the page."""

    kind: ClassVar[str] = "figure"
    name: str
    url: str
    alt: str
    caption: str
    width: int
    height: int
    folder: str
    table: Table


MOST_ROWS = 10
"""Of a table that is open at first."""


def foldable(
    summary: str, caption: str, columns: Sequence[str], values: Sequence[Sequence[Any]]
) -> Table:
    """A table that is closed at first if it is long."""
    return Table(caption, columns, values, folded=summary if len(values) > MOST_ROWS else "")


Block = Paragraph | Lead | Heading | Listing | Definitions | Code | Table | Figure


@dataclass(frozen=True, slots=True)
class Section:
    """``anchor``: its id."""

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Page:
    """All of it."""

    title: str
    subtitle: str
    footer: str
    sections: Sequence[Section] = field(default_factory=tuple)
