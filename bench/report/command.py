"""``pdv-bench report``: everything that is derived from a folder of raw results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from bench.claims.judging import judge
from bench.claims.tables import write_claims
from bench.legacy.results import RAW, Legacy, derive, has_raw, rebuild
from bench.report.analysis import analyse
from bench.report.figures.every import draw_all
from bench.report.page import page, render
from bench.report.page_results import PICTURES
from bench.report.tables import write_tables
from bench.results.records import Run
from bench.results.store import ResultsError, ResultsFolder

PAGE = "report.html"


def build_report(folder: Path, output: Path | None = None) -> Path:
    """Makes the tables, pictures and page of a folder of raw results; returns the page's path.

    They go to ``output``, else into the folder. The same raw results give the same bytes. Optional
    parts that were not measured are left out, and the page says so. Raises ResultsError if there is
    nothing to report on or a file cannot be read or written.
    """
    target = folder if output is None else output
    analysis = analyse(ResultsFolder(folder))
    with _named(target):
        target.mkdir(parents=True, exist_ok=True)
    write_tables(analysis, target)
    legacy = _legacy(folder, target)
    verdicts = judge(analysis, folder)
    write_claims(verdicts, target)
    with _named(target):
        drawings = draw_all(analysis, legacy, target / PICTURES)
        found = page(analysis, drawings, legacy and legacy[0], verdicts, folder)
        (target / PAGE).write_text(render(found), encoding="utf-8")
    return target / PAGE


def _legacy(folder: Path, target: Path) -> tuple[Legacy, Run] | None:
    """The legacy window, where one was measured; its own files lie beside its raw records."""
    if not has_raw(folder):
        return None
    raw = ResultsFolder(folder / RAW)
    return (rebuild(folder) if folder == target else derive(raw)), raw.run()


class _NoReport(click.ClickException):
    exit_code = 2


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--output",
    default=None,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where tables, pictures and page go. [default: the folder of the results]",
)
def report(folder: Path, output: Path | None) -> None:
    """Build tables, pictures and page from the raw results in DIR."""
    try:
        made = build_report(folder, output)
    except ResultsError as error:
        raise _NoReport(str(error)) from error
    click.echo(made)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """System errors as one sentence."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"{error.filename or path}: {error.strerror}") from error
