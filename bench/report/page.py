"""``report.html``: one file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.claims.verdicts import Verdict
from bench.legacy.results import Legacy
from bench.report import page_method, page_results, page_sources, page_summary
from bench.report.facts import commit, machine
from bench.report.figures.picture import Drawn
from bench.report.page_blocks import Page
from bench.report.page_text import counted
from bench.report.summaries import Analysis

TEMPLATE, STYLE = "report.html.jinja", "style.css"
_HERE = Path(__file__).parent


def page(
    analysis: Analysis,
    drawings: Mapping[str, Drawn],
    legacy: Legacy | None,
    verdicts: Sequence[Verdict],
    folder: Path,
) -> Page:
    """All sections. ``folder``: where the optional concurrent test is.

    Raises ResultsError if that cannot be read.
    """
    run = analysis.run
    names = [candidate.name for candidate in run.candidates if candidate.twin_of is None]
    pairs = ", ".join(pair.name for pair in run.pairs)
    sections = (
        page_summary.recommendation(analysis),
        page_summary.sureness(analysis),
        page_results.five_pictures(analysis, drawings),
        page_results.time(analysis, drawings),
        page_results.valley(analysis),
        page_sources.legacy(legacy, drawings),
        page_sources.claims(verdicts),
        page_sources.concurrent(folder),
        page_results.modes(analysis),
        page_method.definitions(),
        page_method.method(analysis),
        page_method.problems(analysis),
    )
    unfinished = "" if analysis.end is not None else ", unfinished"
    return Page(
        title=f"{_either(names)}: what is fastest here{unfinished}",
        subtitle=(
            f"{machine(run.environment)} · {counted(len(run.pairs), 'model pair')} ({pairs}) · "
            f"{counted(len(run.loads), 'load')} · {counted(analysis.blocks, 'block')} · "
            f"{run.started[:10]}"
        ),
        footer=(
            f"Made by pdv-bench report from raw data alone. Commit {commit(run.environment)}, "
            f"schema version {run.schema_version}, started {run.started}, seed {run.seed}."
        ),
        sections=sections,
    )


def render(found: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    style = (_HERE / STYLE).read_text(encoding="utf-8")
    return environment.get_template(TEMPLATE).render(page=found, style=style)


def _either(names: Sequence[str]) -> str:
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
