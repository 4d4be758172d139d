"""What handing work between processes costs: ``python -m bench.handoff``.

Servers of every topology, and of pd and pdv with every ``--kv-handoff`` and every ``--wait``, serve
the shipped pair in interleaved rounds (bench/handoff/rounds.py). Prefix caching is off. All must
give the same ids. With 12 servers at once it takes about 8 GB of memory; ``--quick`` measures the
four topologies alone.

Tokens/s is output tokens / wall time, prefill included; median and range over the rounds. Per edge:
messages, bytes, and p50 and p99 of what each message or handoff cost (``info.handoffs``). A message
that comes while its receiver computes waits in the socket; how much of its ``wire`` that was is
shown beside it. Orchestration share and states come from the requests' timelines
(docs/protocol.md). The servers run with ``--trace``; the files stay in the output folder, and are
what bench/handoff/gap.py takes the gap to the first topology apart with. Ratios are paired by
rounds; their 95 % intervals are corrected so that all of a table hold at once.

``--doses`` and ``--trace-cost`` are experiments of their own: how a token's time grows with a delay
of an edge's messages (bench/handoff/dose.py), and what ``--trace`` costs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bench.arguments import launch_options, whole_numbers
from bench.handoff import dose, report, trace_cost
from bench.handoff.errors import HandoffError
from bench.handoff.rounds import Load, measure
from bench.handoff.tables import write_csv
from bench.handoff.variants import EVERYTHING, TOPOLOGIES, Variant, variants_of
from bench.load.errors import LoadError, WorkloadError
from bench.load.held_out import HeldOut, tokenizer_of
from pdv_mp.client.client import ServerError, ServerUnreachable
from pdv_mp.client.llm import LaunchError

ROUNDS, QUICK_ROUNDS, TRACE_ROUNDS = 8, 3, 24
DOSED = "pdv"
TRACED = ("unified", "pdv")


def run_doses(base: Variant, doses: dose.Doses, load: Load, output: Path) -> list[str]:
    """Measure, print and write the response to delays; what was wrong with it, in words."""
    variants = dose.dose_variants(base, doses)
    measured = measure(list({v.name: v for v in variants.values()}.values()), load, {})
    points = dose.dose_rows(variants, measured.cells)
    lines = dose.line_rows(points)
    write_csv(output / "doses.csv", points)
    write_csv(output / "lines.csv", lines)
    print(f"µs, with a delay of a message in µs:\n\n{dose.point_table(points)}")
    print(f"\nTime = intercept + slope × delay, in µs:\n\n{dose.line_table(lines)}")
    return measured.wrong


def run_trace_cost(bases: Sequence[Variant], load: Load, output: Path) -> list[str]:
    """Measure, print and write the price of ``--trace``; what was wrong with it, in words."""
    measured = measure(trace_cost.trace_variants(bases, output), load, {})
    rows = trace_cost.cost_rows(bases, measured.cells)
    write_csv(output / "trace_cost.csv", rows)
    print(trace_cost.cost_table(rows))
    return measured.wrong


@click.command(help=__doc__)
@click.option(
    "--rounds",
    default=None,
    type=click.IntRange(1),
    help=f"that count  [default: {ROUNDS}; --quick {QUICK_ROUNDS}, --trace-cost {TRACE_ROUNDS}]",
)
@click.option("--quick", is_flag=True, help="the four topologies alone")
@click.option(
    "--concurrency", default="1,8", show_default=True, metavar="LIST", callback=whole_numbers
)
@click.option(
    "--topology",
    "names",
    default=None,
    metavar="LIST",
    help="instead of all: the first one is the reference; pdv+kv-handoff=copy is pdv with that "
    "option",
)
@click.option("--requests", default=2, show_default=True, type=click.IntRange(1), help="per client")
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(2))
@click.option("--prompt-length", default=128, show_default=True, type=click.IntRange(1))
@click.option(
    "--doses",
    is_flag=False,
    flag_value=dose.DEFAULT,
    default=None,
    metavar="EDGE=LIST;…",
    help="instead: delay the messages of these edges by so many microseconds, 0 among them "
    f"[without a value: {dose.DEFAULT}]",
)
@click.option("--trace-cost", "of_trace", is_flag=True, help="instead: what --trace costs")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=launch_options,
    help="an option of pdv-launch for all servers; may be given several times",
)
@click.option(
    "--output",
    default=Path("build/handoff"),
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
)
def main(
    rounds: int | None,
    quick: bool,
    concurrency: list[int],
    names: str | None,
    requests: int,
    tokens: int,
    prompt_length: int,
    doses: str | None,
    of_trace: bool,
    options: dict[str, str],
    output: Path,
) -> None:
    if sum((quick, doses is not None, of_trace)) > 1:
        raise click.UsageError("--quick, --doses and --trace-cost exclude each other")
    usual = TOPOLOGIES if quick else EVERYTHING
    if doses is not None:
        usual = (DOSED,)
    elif of_trace:
        usual = TRACED
    given = usual if names is None else names.split(",")
    variants = variants_of(given, options)
    if len({variant.name for variant in variants}) < len(variants):
        raise click.BadParameter("--topology names something twice")
    amounts = None if doses is None else dose.parse_doses(doses)
    if amounts is not None and len(variants) > 1:
        raise click.BadParameter("--doses is for one topology")
    if rounds is None:
        rounds = QUICK_ROUNDS if quick else TRACE_ROUNDS if of_trace else ROUNDS
    try:
        prompts = HeldOut(tokenizer_of(None)).windows(prompt_length)
    except WorkloadError as error:
        raise click.BadParameter(str(error)) from error
    load = Load(prompts, concurrency, rounds, requests, tokens)
    output.mkdir(parents=True, exist_ok=True)
    try:
        if amounts is not None:
            wrong = run_doses(variants[0], amounts, load, output)
        elif of_trace:
            wrong = run_trace_cost(variants, load, output)
        else:
            wrong = report.run(variants, load, output)
    except (LaunchError, ServerError, ServerUnreachable, LoadError, HandoffError) as error:
        raise click.ClickException(str(error)) from error
    print(f"\n{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main(prog_name="python -m bench.handoff")
