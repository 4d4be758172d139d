"""``pdv-bench legacy``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bench.arguments import launch_options, named, seconds
from bench.legacy.measuring import Measurement
from bench.legacy.overload import OVERLOAD, OverloadError
from bench.legacy.plan import SET_HERE, Plan, candidates, is_run_of
from bench.legacy.results import RAW, read_facts, rebuild
from bench.legacy.tables import cell_table, said_ratio
from bench.load import LoadError, WorkloadError
from bench.load.held_out import HeldOut, tokenizer_of
from bench.load.workloads import Prompts
from bench.results.store import ResultsError, ResultsFolder
from bench.sweep.environment import command_line, environment
from bench.sweep.errors import PlanError
from bench.sweep.pairs import ModelPair, find_pairs, read_pairs
from bench.sweep.plan import typed_options
from launcher.ranges import FiniteRange
from pdv_mp.client.llm import LaunchError
from pdv_mp.config import ConfigError
from pdv_mp.topology import topology

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


@click.command()
@click.option(
    "--topologies",
    default="pd,pdv",
    show_default=True,
    metavar="REFERENCE,OTHER",
    help="The sources let the reference admit all requests and the other one a few.",
)
@click.option(
    "--window",
    default="8s",
    show_default=True,
    metavar="TIME",
    callback=seconds,
    help="Requests arrive in its first half. The sources' own is 60s.",
)
@click.option("--blocks", default=2, show_default=True, type=click.IntRange(1))
@click.option(
    "--concurrency",
    default=128,
    show_default=True,
    type=click.IntRange(2),
    help="Requests that unbounded admission lets in at once.",
)
@click.option(
    "--bounded",
    default=14,
    show_default=True,
    type=click.IntRange(1),
    help="Requests that bounded admission lets in at once.",
)
@click.option(
    "--overload",
    default=OVERLOAD,
    show_default=True,
    type=FiniteRange(0, min_open=True),
    help="Tokens asked for over tokens that can be generated in the window.",
)
@click.option("--prompt-length", default=32, show_default=True, type=click.IntRange(1))
@click.option(
    "--pairs",
    "pairs_file",
    default=None,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Model pairs, as for the sweep. [default: the shipped pair]",
)
@click.option("--pair", "pair_name", default=None, metavar="NAME", help="One of --pairs.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--option",
    "common",
    multiple=True,
    metavar="NAME=VALUE",
    callback=launch_options,
    help="An option of pdv-launch for all servers; may be given several times.",
)
@click.option(
    "--output",
    default=Path("results"),
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
)
def legacy(
    topologies: str,
    window: float,
    blocks: int,
    concurrency: int,
    bounded: int,
    overload: float,
    prompt_length: int,
    pairs_file: Path | None,
    pair_name: str | None,
    seed: int,
    common: dict[str, str],
    output: Path,
) -> None:
    """Measure as the source documents did, and honestly, from the same requests.

    Requests arrive faster than they can be served, for the first half of a window. The sources
    counted the tokens of those that completed before its end, with one topology that admits all
    requests at once and one that admits a few. Here both topologies are measured with both
    admissions, and all tokens are counted as well. A run that was interrupted is taken up.
    """
    names = topologies.split(",")
    if len(names) != 2 or names[0] == names[1]:
        raise click.BadParameter("give two different topologies", param_hint="--topologies")
    if bounded >= concurrency:
        raise click.BadParameter("it must be below --concurrency", param_hint="--bounded")
    folder = ResultsFolder(output / RAW)
    try:
        pair = _pair(pairs_file, pair_name)
        rows = {name: named(name) for name in names}
        plan = Plan(
            pair=pair.record,
            models={"model": str(pair.verifier), "draft_model": str(pair.draft)},
            topologies={
                name: (row, _options({**common, **own})) for name, (row, own) in rows.items()
            },
            reference=names[0],
            candidate=names[1],
            blocks=blocks,
            window=window,
            overload=overload,
            slots=concurrency,
            bounded=bounded,
            prompt_tokens=prompt_length,
            seed=seed,
        )
        for row, _ in rows.values():
            topology(row)
        prompts = HeldOut(tokenizer_of(str(pair.verifier))).windows(prompt_length)
    except (ConfigError, PlanError, WorkloadError) as error:
        raise click.UsageError(str(error)) from error
    try:
        if folder.exists and not is_run_of(plan, folder.run()):
            raise click.UsageError(
                f"{folder.path} holds a run with other options or models; choose another --output"
            )
        interrupted = _run(plan, prompts, folder)
        compared = _report(output)
    except (LaunchError, LoadError, OverloadError, ResultsError) as error:
        raise click.ClickException(str(error)) from error
    if interrupted:
        sys.exit(EXIT_INTERRUPTED)
    if not compared:
        sys.exit(EXIT_FAILED)


def _pair(path: Path | None, name: str | None) -> ModelPair:
    pairs = read_pairs(path)
    chosen = [pair for pair in pairs if name in (None, pair.name)]
    if not chosen:
        known = ", ".join(pair.name for pair in pairs)
        raise PlanError(f"--pair {name}: there is no such pair; choose one of {known}")
    return find_pairs(chosen[:1])[0]


def _options(texts: Mapping[str, str]) -> dict[str, Any]:
    found = typed_options(texts)
    for name in set(found) & SET_HERE:
        raise PlanError(f"option {name.replace('_', '-')} of the servers is set by this experiment")
    return found


def _run(plan: Plan, prompts: Prompts, folder: ResultsFolder) -> bool:
    """Measures what is not there yet. Returns whether it was interrupted; what is done by then is
    kept."""
    if folder.exists and len(folder.resume()) >= plan.blocks * len(candidates(plan)):
        return False
    try:
        with Measurement(plan, prompts) as measurement:
            if folder.exists:
                facts = read_facts(folder)
            else:
                facts = measurement.facts(*measurement.calibrate())
                folder.begin(measurement.run_record(facts, command_line(sys.argv), environment()))
            measurement.measure(facts, folder, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        if not folder.exists:
            sys.exit(EXIT_INTERRUPTED)
        return True
    return False


def _report(output: Path) -> bool:
    """Returns whether there is something to compare."""
    found = rebuild(output)
    click.echo(cell_table(found))
    if found.legacy is None or found.honest is None:
        click.echo("no block has all four cells, so there is nothing to compare", err=True)
        return False
    click.echo(
        f"\n{found.facts.candidate}, bounded, over {found.facts.reference}, unbounded: "
        f"{said_ratio(found.legacy)} by completed requests, {said_ratio(found.honest)} by all "
        f"tokens\n{output}: legacy.md, legacy.csv, legacy.json"
    )
    return True
