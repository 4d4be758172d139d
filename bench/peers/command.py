"""``pdv-bench peers``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from bench.arguments import seconds, whole_numbers
from bench.load.errors import WorkloadError
from bench.peers.between import between_table, betweens
from bench.peers.environments import install
from bench.peers.errors import PeerError, PeersError
from bench.peers.measurement import Measurement
from bench.peers.pairs import Pair, standing_pair
from bench.peers.plan import Choice, Limits, Plan
from bench.peers.records import PeersFolder, Workload
from bench.peers.registry import chosen, peers
from bench.peers.summary import summarise
from launcher.ranges import FiniteRange

BEGIN, END = "<!-- peers begin -->", "<!-- peers end -->"
DEFAULT_FOLDER = Path("build/peers")
DEFAULT_OUTPUT = Path("results/peers")


def _workloads(
    context: click.Context, parameter: click.Parameter, text: str
) -> tuple[Workload, ...]:
    found = []
    for part in text.split(","):
        prompt, plus, output = part.partition("+")
        if not plus or not prompt.isdecimal() or not output.isdecimal():
            raise click.BadParameter(f"{part!r} is not PROMPT+OUTPUT, such as 128+64")
        found.append(Workload(int(prompt), int(output)))
    if any(load.prompt < 1 or load.output < 2 for load in found):
        raise click.BadParameter("a workload has a prompt and two new tokens or more")
    return tuple(dict.fromkeys(found))


def _agreements(context: click.Context, parameter: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers") from error
    if not all(0 < value < 1 for value in found):
        raise click.BadParameter(f"{text!r}: an agreement is between 0 and 1")
    return found


def _numbers_or_none(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> list[int] | None:
    return None if text is None else whole_numbers(context, parameter, text)


def _time(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    return None if text is None else seconds(context, parameter, text)


@click.command()
@click.option("--setup", is_flag=True, help="Install the peers, say what cannot be, and end.")
@click.option(
    "--engines",
    default=None,
    metavar="LIST",
    help="Peers, or PEER:MODE for one of its modes.  [default: all]",
)
@click.option("--url", help="Also a server with OpenAI's completions endpoint, as http://HOST/v1.")
@click.option(
    "--agreement", "agreements", default="0.75,0.42", show_default=True, callback=_agreements
)
@click.option(
    "--workloads", default="128+64,32+256", show_default=True, callback=_workloads, metavar="LIST"
)
@click.option(
    "--concurrency", "concurrencies", default="1,8,32", show_default=True, callback=whole_numbers
)
@click.option(
    "--rounds",
    default="6,4,2",
    show_default=True,
    callback=whole_numbers,
    help="Of each concurrency, or one number for all.",
)
@click.option("--threads", type=click.IntRange(1), help="Of every engine.  [default: all cores]")
@click.option("--draft-tokens", type=click.IntRange(1, 16), default=4, show_default=True)
@click.option("--budget", callback=_time, metavar="TIME", help="End after about that long, as 18m.")
@click.option(
    "--once-below",
    type=FiniteRange(0, 1),
    default=0.7,
    show_default=True,
    help="A peer whose first round is below this share of the best peer's is measured once.",
)
@click.option("--judged", type=click.IntRange(0), default=8, show_default=True, help="Per turn.")
@click.option("--timeout", default="5m", show_default=True, callback=_time, help="Of one turn.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Of the environments, the pairs and what engines convert.",
)
@click.option(
    "--pair",
    "given",
    type=(str, click.Path(path_type=Path, exists=True), click.Path(path_type=Path, exists=True)),
    multiple=True,
    metavar="NAME VERIFIER DRAFT",
    help="Another pair instead of the 111-million one.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_OUTPUT,
    show_default=True,
    help="Of the results; a comparison that is there is taken up.",
)
@click.option("--restart", is_flag=True, help="Begin anew in a folder with results.")
@click.option("--report-only", is_flag=True, help="Measure nothing; write tables and figure again.")
@click.option(
    "--page",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=f"A document that gets the tables between {BEGIN} and {END}.",
)
@click.option(
    "--between",
    default=None,
    metavar="LIST",
    callback=_numbers_or_none,
    help="Also compare these concurrencies, or prompt lengths, with what lies between the nearest "
    "others that were measured.",
)
@click.option("--pip-option", "pip_options", multiple=True, help="For pip install; repeatable.")
def peers_command(
    setup: bool,
    engines: str | None,
    url: str | None,
    agreements: tuple[float, ...],
    workloads: tuple[Workload, ...],
    concurrencies: list[int],
    rounds: list[int],
    threads: int | None,
    draft_tokens: int,
    budget: float | None,
    once_below: float,
    judged: int,
    timeout: float,
    seed: int,
    folder: Path,
    given: tuple[tuple[str, Path, Path], ...],
    output: Path,
    restart: bool,
    report_only: bool,
    page: Path | None,
    between: list[int] | None,
    pip_options: tuple[str, ...],
) -> None:
    """Our server beside the engines that a user would pick instead.

    All engines get the same requests in one interleaved run: float32, greedy, the same number of
    threads, no prefix caching. Those that are not installed are listed as such; --setup installs
    them.
    """
    results = PeersFolder(output)
    try:
        choices = _choices(engines, url)
        if setup:
            _set_up(choices, folder, pip_options)
            return
        if not report_only:
            if len(rounds) not in (1, len(concurrencies)):
                raise click.BadParameter(
                    f"{len(rounds)} numbers for {len(concurrencies)} concurrencies",
                    param_hint="--rounds",
                )
            plan = Plan(
                engines=choices,
                workloads=workloads,
                concurrencies=tuple(concurrencies),
                rounds=tuple(rounds * len(concurrencies) if len(rounds) == 1 else rounds),
                seed=seed,
                threads=threads or len(os.sched_getaffinity(0)),
                draft_tokens=draft_tokens,
                limits=Limits(answer=timeout, once_below=once_below, judged=judged),
            )
            measure = Measurement(plan, results, folder.resolve(), url or "", _say)
            measure.run(_pairs(given, agreements, folder), restart, budget)
        _write(results, page)
        if between is not None:
            found = betweens(summarise(results.run(), results.cells(), results.failures()), between)
            if not found:
                raise PeersError("--between: no such place lies between two that were measured")
            click.echo("\n" + between_table(found))
    except (PeersError, WorkloadError) as error:
        raise click.UsageError(str(error)) from None


def _choices(engines: str | None, url: str | None) -> tuple[Choice, ...]:
    names = list(peers()) if engines is None else [part.strip() for part in engines.split(",")]
    if engines is None and url is None:
        names = [name for name in names if not peers()[name][1].needs_url]
    elif url is not None and not any(peers()[n.partition(":")[0]][1].needs_url for n in names):
        names.append("url")
    found = chosen(names)
    if url is None and any(peers()[choice.peer][1].needs_url for choice in found):
        raise PeersError("the peer url needs --url")
    return tuple(found)


def _set_up(choices: tuple[Choice, ...], folder: Path, pip_options: tuple[str, ...]) -> None:
    failed = False
    for name in dict.fromkeys(choice.peer for choice in choices):
        try:
            install(peers()[name][1], folder, pip_options, click.echo)
        except PeerError as error:
            failed = True
            click.echo(f"{name}: {error}", err=True)
    if failed:
        raise click.exceptions.Exit(1)


def _pairs(
    given: tuple[tuple[str, Path, Path], ...], agreements: tuple[float, ...], folder: Path
) -> list[Pair]:
    if given:
        return [
            Pair(name, verifier.resolve(), draft.resolve(), folder.resolve() / "converted" / name)
            for name, verifier, draft in given
        ]
    place = folder.resolve() / "pairs"
    return [standing_pair(place, agreement, click.echo) for agreement in agreements]


def _say(text: str) -> None:
    click.echo(text, err=True)


def _write(results: PeersFolder, page: Path | None) -> None:
    """``peers.md`` and the figure; into a document the tables, and the figure beside it."""
    from bench.peers.figure import NAME, draw
    from bench.peers.tables import page as tables

    summary = summarise(results.run(), results.cells(), results.failures())
    text = tables(summary)
    try:
        (results.path / f"{NAME}.md").write_text(text + "\n", encoding="utf-8")
        drawn = draw(summary, results.path)
        if page is not None:
            from bench.models.evaluate import replace_between_markers

            file = f"{NAME}.png"
            section = f"![{drawn.picture.alt}]({file})\n\n{text}"
            old = page.read_text(encoding="utf-8")
            new = replace_between_markers(old, section, BEGIN, END)
            shutil.copyfile(results.path / file, page.parent / file)
            page.write_text(new, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PeersError(str(error)) from error
    click.echo(text)
