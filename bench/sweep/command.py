"""``pdv-bench sweep``."""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from bench.arguments import launch_options, named, seconds, whole_numbers
from bench.load import Lengths, WorkloadError, parse_lengths
from bench.report.analysis import analyse
from bench.results.records import End
from bench.results.store import ResultsError, ResultsFolder
from bench.sweep.display import Display
from bench.sweep.errors import PlanError
from bench.sweep.pair_servers import PairServers
from bench.sweep.plan import first_difference
from bench.sweep.preparation import (
    DEFAULT_SECONDS,
    Options,
    Prepared,
    prepare_run,
    with_roofline,
)
from bench.sweep.summary import summary
from bench.sweep.sweep import Measure, Sweep
from launcher.ranges import FiniteRange
from pdv_mp.client.llm import LaunchError

TOPOLOGIES = "unified,pd,pdv"
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def _names(
    context: click.Context, parameter: click.Parameter, text: str
) -> dict[str, tuple[str, dict[str, str]]]:
    given = [part.strip() for part in text.split(",")]
    if len(set(given)) < len(given):
        raise click.BadParameter(f"{text!r} names something twice")
    return {name: named(name) for name in given}


def _concurrencies(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> list[int]:
    return [] if text is None else whole_numbers(context, parameter, text)


def _rates(context: click.Context, parameter: click.Parameter, text: str | None) -> list[float]:
    try:
        found = [] if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers") from error
    if not all(0 < rate < math.inf for rate in found):
        raise click.BadParameter(f"{text!r} has a rate that is not above 0")
    return found


def _lengths(context: click.Context, parameter: click.Parameter, text: str) -> Lengths:
    try:
        return parse_lengths(text)
    except WorkloadError as error:
        raise click.BadParameter(str(error)) from error


@click.command(context_settings={"max_content_width": 100, "show_default": True})
@click.option(
    "--topologies",
    default=TOPOLOGIES,
    metavar="LIST",
    callback=_names,
    help="What is compared. Ratios are taken of the first; pdv+kv-handoff=copy is pdv with that "
    "option of pdv-launch.",
)
@click.option(
    "--concurrency",
    metavar="LIST",
    callback=_concurrencies,
    help="Closed loops of so many clients.  [default: 1,8,32 if no other load is given]",
)
@click.option(
    "--rate", metavar="LIST", callback=_rates, help="Open loops of so many requests a second."
)
@click.option(
    "--burstiness",
    default=1.0,
    type=FiniteRange(0, min_open=True),
    help="Shape of the gamma distribution of their gaps: 1 is Poisson, less comes in bursts.",
)
@click.option(
    "--trace",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Requests that arrive when a JSONL file says.",
)
@click.option(
    "--pairs",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="YAML file of model pairs.  [default: the shipped pair]",
)
@click.option("--blocks", default=8, type=click.IntRange(1), help="At most; warm-up comes before.")
@click.option(
    "--seconds",
    type=FiniteRange(0, min_open=True),
    help=f"Length of a window.  [default: {DEFAULT_SECONDS}; a trace alone is replayed whole]",
)
@click.option("--ramp", default=1.0, type=FiniteRange(0), help="Seconds of load before it.")
@click.option(
    "--budget",
    default="30m",
    metavar="TIME",
    callback=seconds,
    help="No block begins that would not end in it; of several pairs each has its part.",
)
@click.option(
    "--precision",
    type=FiniteRange(0, min_open=True),
    help="End sooner, once all ratios are known to a factor of 1 + this.",
)
@click.option(
    "--again/--no-again",
    default=True,
    help="A second server of the first topology, whose difference to it is noise.",
)
@click.option(
    "--slo",
    default="",
    metavar="LIST",
    help="What a request must keep to count as good, in ms: ttft=500,tpot=50,e2e=3000.",
)
@click.option(
    "--workload",
    default="held-out",
    metavar="NAME|FILE",
    help="held-out, repetitive or plain (cut from the shipped pair's held-out files), a JSONL file "
    "of prompts, or a .json file of ShareGPT's form.",
)
@click.option(
    "--prompt-tokens",
    default="128",
    metavar="LENGTHS",
    callback=_lengths,
    help="Of held-out prompts: 128, uniform:16-112 or lognormal:64,0.5.",
)
@click.option(
    "--output-tokens",
    default="uniform:16-112",
    metavar="LENGTHS",
    callback=_lengths,
    help="Of answers, where the workload does not say.",
)
@click.option("--temperature", default=0.0, type=FiniteRange(0, 100), help="0 is greedy.")
@click.option(
    "--option",
    multiple=True,
    metavar="NAME=VALUE",
    callback=launch_options,
    help="An option of pdv-launch for all servers; may be given several times.",
)
@click.option("--seed", default=0, type=click.IntRange(0))
@click.option(
    "--output",
    default=Path("results"),
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="A run that was cut off there is taken up.",
)
@click.option("--resume", is_flag=True, help="Only take up a run that is there.")
@click.option("--restart", is_flag=True, help="Delete the run that is there, and measure anew.")
@click.option("--allow-failures", is_flag=True, help="Exit with 0 even if cells failed.")
@click.option(
    "--roofline/--no-roofline",
    default=True,
    help="First measure what the machine can do, for the report's bounds; takes seconds.",
)
@click.option(
    "--progress/--no-progress",
    default=None,
    help="A bar with the time left.  [default: on a terminal; else a line for each block]",
)
def sweep(
    output: Path,
    resume: bool,
    restart: bool,
    allow_failures: bool,
    roofline: bool,
    progress: bool | None,
    **options: Any,
) -> None:
    """Compare topologies under load, in interleaved blocks.

    Each block measures every candidate under every load, in rotated order, with the same requests.
    All servers of a model pair run at once, and all but one are idle. The folder of --output holds
    raw records, and at the end the report. Block 0 is warm-up; its requests carry timelines.
    """
    if resume and restart:
        raise click.UsageError("--resume and --restart exclude each other")
    folder = ResultsFolder(output)
    try:
        prepared = prepare_run(Options(**options))
    except (PlanError, WorkloadError) as error:
        raise click.UsageError(str(error)) from None
    try:
        with folder.writing():
            if enter_run(folder, prepared, resume=resume, restart=restart, roofline=roofline):
                for note in prepared.notes:
                    _say(note)
                measure_run(folder, prepared, options["budget"], progress)
            failed = _report(folder)
    except (ResultsError, LaunchError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        _say_interrupted(folder)
        sys.exit(EXIT_INTERRUPTED)
    if failed and not allow_failures:
        sys.exit(EXIT_FAILED)


def enter_run(
    folder: ResultsFolder,
    prepared: Prepared,
    *,
    resume: bool,
    restart: bool,
    roofline: bool = False,
) -> bool:
    """Begins the run, or takes up the one that is there; whether there is something to measure.

    Raises UsageError if there is one that is not to be touched.
    """
    if restart or not folder.exists:
        if resume:
            raise click.UsageError(f"{folder.path} holds no run that could be taken up")
        folder.begin(with_roofline(prepared) if roofline else prepared.run)
        return True
    try:
        there, cells = folder.run(), folder.resume()
    except ResultsError as error:
        raise click.UsageError(f"{error}; --restart deletes what is there") from None
    if not cells:
        folder.begin(with_roofline(prepared) if roofline else prepared.run)
        return True
    difference = first_difference(there, prepared.run)
    if difference is not None:
        raise click.UsageError(
            f"{folder.path} holds another run, whose {difference}; choose another --output, or "
            "--restart, which deletes it"
        )
    end = folder.stopped()
    if end is not None:
        _say(f"{folder.path} holds the whole run ({end.stopped}); --restart measures anew")
        return False
    _say(f"{folder.path}: going on after {len(cells)} cells")
    return True


def measure_run(
    folder: ResultsFolder, prepared: Prepared, budget: float, progress: bool | None
) -> End:
    """Measure what is not there yet; ``progress`` as the option of that name. Raises LaunchError or
    ResultsError."""
    run = prepared.run

    def open_pair(number: int) -> AbstractContextManager[Measure]:
        pair = prepared.pairs[number]
        must_start = not folder.cells()
        return PairServers(run, pair, prepared.works[pair.name], must_start=must_start)

    with Display(run, bar=progress, lines=progress is None) as display:
        return Sweep(folder, run, open_pair, display, budget).run()


def _report(folder: ResultsFolder) -> int:
    """Prints what was found and makes the report; how many cells failed."""
    from bench.report.command import build_report

    analysis = analyse(folder)
    click.echo(summary(analysis))
    for warning in analysis.warnings:
        _say(warning)
    click.echo(f"\n{build_report(folder.path)}")
    return sum(cell.failed is not None for cell in folder.cells())


def _say_interrupted(folder: ResultsFolder) -> None:
    try:
        cells = len(folder.cells())
    except ResultsError as error:
        _say(f"interrupted; {error}")
        return
    _say(
        f"interrupted: {cells} cells are kept in {folder.path}; the same command goes on from "
        f"there, and `pdv-bench report {folder.path}` shows what is known"
    )


def _say(text: str) -> None:
    click.echo(text, err=True)
