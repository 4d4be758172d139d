"""``pdv-bench ablate``: one small sweep for each design choice, and what it shows."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from bench.ablations.catalogue import ABLATIONS, NOT_HERE, WAIT, Ablation
from bench.ablations.picture import TOO_FEW, draw, draw_points, finding
from bench.ablations.waiting import Rates, kept_waits, measure_waits, wait_points
from bench.arguments import seconds
from bench.handoff.errors import HandoffError
from bench.load.errors import LoadError, WorkloadError
from bench.report.analysis import analyse
from bench.report.figures.picture import Picture
from bench.report.figures.style import settings
from bench.results.store import ResultsError, ResultsFolder
from bench.statistics import MIN_BLOCKS
from bench.sweep.command import enter_run, measure_run
from bench.sweep.errors import PlanError
from bench.sweep.preparation import Options, prepare_run
from launcher.ranges import FiniteRange
from pdv_mp.client.client import ServerError, ServerUnreachable
from pdv_mp.client.llm import LaunchError

PAGE = "ablations.md"
NAMES = (*ABLATIONS, WAIT)
EXIT_INTERRUPTED = 130
_WAIT_SAYS = "how processes wait for messages"


def _chosen(context: click.Context, parameter: click.Parameter, text: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name in NOT_HERE:
            raise click.BadParameter(f"{name} is not measured: it {NOT_HERE[name]}")
        if name not in NAMES:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(NAMES)}")
    return names


@click.command(context_settings={"max_content_width": 100, "show_default": True})
@click.option("--only", default=",".join(NAMES), metavar="LIST", callback=_chosen)
@click.option("--blocks", default=8, type=click.IntRange(1), help="Of each; warm-up comes before.")
@click.option(
    "--seconds", "window", default=2.5, type=FiniteRange(0, min_open=True), help="Of a window."
)
@click.option(
    "--budget", default="60m", metavar="TIME", callback=seconds, help="For all that are left to do."
)
@click.option("--seed", default=0, type=click.IntRange(0))
@click.option("--report-only", is_flag=True, help="Measure nothing; write page and figures again.")
@click.option(
    "--output",
    default=Path("results/ablations"),
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for each ablation; what was interrupted is taken up; the page has all.",
)
def ablate(
    only: list[str],
    blocks: int,
    window: float,
    budget: float,
    seed: int,
    report_only: bool,
    output: Path,
) -> None:
    """Vary one design choice at a time on the shipped pair, and draw what it does."""
    deadline = time.monotonic() + budget
    pictures: dict[str, Picture | None] = {}
    measured = [] if report_only else only
    try:
        for name in NAMES:
            if name not in measured and (output / name).is_dir():
                pictures[name] = _there(output / name, name)
        if report_only and not pictures:
            raise ResultsError(f"{output} has no ablations")
        for number, name in enumerate(measured):
            share = max(1.0, (deadline - time.monotonic()) / (len(measured) - number))
            click.echo(f"{name}: {share:.0f} s at most", err=True)
            pictures[name] = (
                _waits(output / WAIT, blocks)
                if name == WAIT
                else _sweep(ABLATIONS[name], output / name, blocks, window, share, seed)
            )
    except (PlanError, WorkloadError) as error:
        raise click.UsageError(str(error)) from error
    except (ResultsError, LaunchError, LoadError, HandoffError) as error:
        raise click.ClickException(str(error)) from error
    except (ServerError, ServerUnreachable, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo(f"interrupted: what is done is kept in {output}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    click.echo(_page(output, pictures))


def _sweep(
    ablation: Ablation, path: Path, blocks: int, window: float, budget: float, seed: int
) -> Picture | None:
    prompts, answers = ablation.lengths
    prepared = prepare_run(
        Options(
            topologies=ablation.candidates,
            concurrency=ablation.loads,
            rate=(),
            burstiness=1.0,
            trace=None,
            pairs=None,
            blocks=blocks,
            seconds=window,
            ramp=1.0,
            budget=budget,
            precision=None,
            again=True,
            slo="",
            workload="held-out",
            prompt_tokens=prompts,
            output_tokens=answers,
            temperature=0.0,
            option=ablation.common,
            seed=seed,
        )
    )
    folder = ResultsFolder(path)
    with folder.writing():
        if enter_run(folder, prepared, resume=False, restart=False):
            measure_run(folder, prepared, budget, None)
    return _there(path, ablation.name)


def _there(path: Path, name: str) -> Picture | None:
    """What a folder's results show, whichever programs they are of."""
    if name == WAIT:
        return _picture_of_waits(kept_waits(path))
    analysis = analyse(ResultsFolder(path))
    with settings():
        return draw(ABLATIONS[name], analysis)


def _waits(path: Path, blocks: int) -> Picture | None:
    return _picture_of_waits(measure_waits(path, max(blocks, MIN_BLOCKS)))


def _picture_of_waits(rates: Rates) -> Picture | None:
    points = wait_points(rates)
    title = finding(_WAIT_SAYS, "block", points)
    below = "the shipped pair in interleaved rounds; servers that spin are stopped meanwhile"
    with settings():
        return draw_points(WAIT, title, "pdv, wait", "block", points, below)


def _page(output: Path, pictures: dict[str, Picture | None]) -> str:
    """Writes the pictures and the page that shows them; its text."""
    output.mkdir(parents=True, exist_ok=True)
    lines = ["# Ablations", "", "One choice varied at a time, on the shipped pair.", ""]
    for name in filter(pictures.__contains__, NAMES):
        picture = pictures[name]
        if picture is None:
            lines += [f"## {name}: {TOO_FEW} to compare", ""]
            continue
        picture.write(output)
        lines += [f"## {picture.title}", "", f"![{picture.alt}]({picture.name}.png)", ""]
        lines += [picture.caption, ""]
    lines += [f"Not measured: {name}, which {why}." for name, why in NOT_HERE.items()]
    text = "\n".join(lines) + "\n"
    (output / PAGE).write_text(text, encoding="utf-8")
    return text
