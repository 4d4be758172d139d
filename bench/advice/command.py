"""``pdv-bench advise``: which topology and draft length to use."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import click

from bench.advice.advising import LAW_ERROR, advice, measured_advice, options, typed_table
from bench.advice.regret import (
    Regret,
    concurrencies,
    regrets,
    rule_regrets,
    table,
    verifier_sizes,
)
from bench.emulation.findings import law_rows, residual
from bench.emulation.law import Arrangement, HostCosts, Work, predict
from bench.emulation.records import TrialFolder
from bench.emulation.studies import BASE, TOPOLOGIES, host_costs
from bench.report.analysis import Analysis, analyse
from bench.results.store import ResultsError, ResultsFolder
from launcher.ranges import FiniteRange
from pdv_mp.config import ConfigError
from pdv_mp.emulation.cost_table import CostTable, read_cost_table
from pdv_mp.emulation.device_name import table_path

HOST_US = (300.0, 15.0)
HOP_US = (300.0, 5.0)
"""Of a cycle and of a message, and of each request in it, where nobody has measured them."""


def _line(context: click.Context, parameter: click.Parameter, text: str | None) -> Sequence[float]:
    """``300,5`` or ``300``, µs. Raises click.BadParameter."""
    if text is None:
        return ()
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not of the form 300,5 (µs)") from error
    if len(found) not in (1, 2) or not all(0 <= value < float("inf") for value in found):
        raise click.BadParameter(f"{text!r} is not of the form 300,5 (µs)")
    return (*found, 0.0)[:2]


@click.command(context_settings={"max_content_width": 100, "show_default": True})
@click.option("--concurrency", "-c", required=True, type=click.IntRange(1, 4096))
@click.option(
    "--costs",
    metavar="FILE|NAME",
    help="A cost table: of pdv-bench calibrate, or a shipped one such as h200-llama-2-7b.",
)
@click.option("--draft-ms", type=FiniteRange(0), help="Instead: a step of the draft.")
@click.option("--verify-ms", type=FiniteRange(0), help="A step of the verifier for one row.")
@click.option("--row-us", default=0.0, type=FiniteRange(0), help="Each row more.")
@click.option("--prefill-ms", default=0.0, type=FiniteRange(0), help="A prompt.")
@click.option(
    "--acceptance",
    type=FiniteRange(0, 1),
    help="Probability that a draft token is kept.  [default: the table's]",
)
@click.option("--hop-us", metavar="A,B", callback=_line, help="A message for n requests: A + B n.")
@click.option("--host-us", metavar="A,B", callback=_line, help="A cycle besides its steps.")
@click.option(
    "--laboratory",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Of pdv-bench emulate: takes both from there, and how far the law is off.",
)
@click.option("--devices", default=1, type=click.IntRange(1, 2), help="How many there are.")
@click.option("--prompt-tokens", default=128, type=click.IntRange(1))
@click.option("--output-tokens", default=128, type=click.IntRange(1))
@click.option(
    "--results",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Of pdv-bench sweep: without costs the advice is taken from there; with them its regret "
    "is computed, and that of the source documents' rules.",
)
def advise(
    concurrency: int,
    costs: str | None,
    draft_ms: float | None,
    verify_ms: float | None,
    row_us: float,
    prefill_ms: float,
    acceptance: float | None,
    hop_us: Sequence[float],
    host_us: Sequence[float],
    laboratory: Path | None,
    devices: int,
    prompt_tokens: int,
    output_tokens: int,
    results: Path | None,
) -> None:
    """Say in three sentences which topology and draft length to use.

    From a cost table, from numbers that are typed in, or from measured results alone.
    """
    typed = verify_ms is not None or draft_ms is not None
    if costs is not None and typed:
        raise click.UsageError("--costs and --draft-ms, --verify-ms exclude each other")
    if typed and (verify_ms is None or draft_ms is None or acceptance is None):
        raise click.UsageError("--draft-ms, --verify-ms and --acceptance go together")
    if costs is None and not typed and results is None:
        raise click.UsageError("give --costs, or --draft-ms and --verify-ms, or --results")
    try:
        analysis = None if results is None else analyse(ResultsFolder(results))
        if costs is None and not typed:
            if analysis is None:
                raise click.UsageError("give --results")
            for pair in analysis.run.pairs:
                click.echo("\n".join(measured_advice(analysis, pair.name, concurrency)))
            _judge(analysis, [])
            return
        if costs is not None:
            steps = read_cost_table(table_path(costs))
            steps = (
                steps if acceptance is None else dataclasses.replace(steps, acceptance=acceptance)
            )
        else:
            steps = typed_table(
                1000 * (draft_ms or 0.0),
                1000 * (verify_ms or 0.0),
                row_us,
                1000 * prefill_ms,
                acceptance or 0.0,
            )
        host, error = _host(laboratory, host_us, hop_us)
        work = Work(prompt_tokens, output_tokens)
        found = options(steps, host, concurrency, work, devices)
        click.echo("\n".join(advice(found, concurrency, error, steps.origin.partition(":")[0])))
        if analysis is not None:
            chosen = _chosen(analysis, steps, host, work)
            _judge(analysis, regrets(analysis, "the law", chosen))
    except ConfigError as error_:
        raise click.UsageError(str(error_)) from error_
    except (ResultsError, ValueError) as error_:
        raise click.ClickException(str(error_)) from error_


def _judge(analysis: Analysis, found: list[Regret]) -> None:
    """Print these regrets and those of the source documents' rules, as far as sizes are known."""
    sizes = verifier_sizes(analysis)
    click.echo("\n" + table(found + rule_regrets(analysis, sizes)))
    unknown = [pair.name for pair in analysis.run.pairs if pair.name not in sizes]
    if unknown:
        click.echo(
            f"\nThe run does not say how large the verifier of {', '.join(unknown)} is, which the "
            "source documents' rules ask for, so they are left out there."
        )


def _host(
    laboratory: Path | None, host_us: Sequence[float], hop_us: Sequence[float]
) -> tuple[HostCosts, float]:
    """The host's part, and how far the law is off. What is typed in goes before the laboratory."""
    host, error = HostCosts(*HOST_US, *HOP_US), LAW_ERROR
    if laboratory is not None:
        folder = TrialFolder(laboratory)
        folder.header()
        trials = folder.trials()
        measured = host_costs(trials, read_cost_table(table_path(BASE)).acceptance)
        if measured is None:
            raise ResultsError(f"{laboratory} has no complete host study")
        off = residual(law_rows(trials, folder.predictions()))
        host, error = measured, LAW_ERROR if off is None else off
    s0, s1 = host_us or (host.s0, host.s1)
    h0, h1 = hop_us or (host.h0, host.h1)
    return HostCosts(s0, s1, h0, h1), error


def _chosen(
    analysis: Analysis, steps: CostTable, host: HostCosts, work: Work
) -> dict[tuple[str, int], str]:
    """What the law would choose among the candidates of a run."""
    chosen = {}
    for pair in analysis.run.pairs:
        for concurrency in concurrencies(analysis):
            rates = {}
            for candidate in analysis.run.candidates:
                length = candidate.options.get("num_speculative_tokens")
                if candidate.topology not in TOPOLOGIES or not isinstance(length, int):
                    continue
                where = Arrangement(candidate.topology, int(candidate.options.get("groups", 1)))
                rates[candidate.name] = predict(steps, host, where, concurrency, length, work).rate
            if rates:
                chosen[pair.name, concurrency] = max(rates, key=lambda name: rates[name])
    return chosen
