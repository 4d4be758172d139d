"""``pdv-bench emulate``: the laboratory of emulated devices."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from bench.arguments import launch_options, seconds, whole_numbers
from bench.emulation import studies
from bench.emulation.law import Work
from bench.emulation.recalibration import recalibrated
from bench.emulation.records import TrialFolder
from bench.emulation.report import write_report
from bench.emulation.trials import Budget, left_to_do, run_trials, workload
from bench.load.errors import WorkloadError
from bench.results.store import ResultsError
from bench.sweep.environment import machine, source_digest, versions
from bench.sweep.errors import PlanError
from bench.sweep.plan import typed_options
from launcher.ranges import FiniteRange
from pdv_mp.config import ConfigError
from pdv_mp.emulation.cost_table import CostTable, read_cost_table
from pdv_mp.emulation.device_name import table_path

STUDIES = ("host", "validation", "valley", "delay", "devices")
CALIBRATION_SECONDS = 30.0
"""What a calibration is thought to take before the first one."""

EXIT_INTERRUPTED = 130
EXIT_LEFT_OUT = 1


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers") from error
    if not all(0 <= value < float("inf") for value in found):
        raise click.BadParameter(f"{text!r} has a number below 0")
    return found


def _studies(context: click.Context, parameter: click.Parameter, text: str) -> list[str]:
    found = [part.strip() for part in text.split(",")]
    for name in found:
        if name not in STUDIES:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(STUDIES)}")
    return found


@click.command(context_settings={"max_content_width": 100, "show_default": True})
@click.option(
    "--studies",
    "chosen",
    default="host,valley,delay,devices",
    metavar="LIST",
    callback=_studies,
    help="Which questions; validation needs --calibrated. host comes first and is always made.",
)
@click.option(
    "--calibrated",
    metavar="FILE",
    help="The cost table of this machine's CPU, by pdv-bench calibrate, for the validation, which "
    "times its steps again for each block.",
)
@click.option(
    "--option",
    multiple=True,
    metavar="NAME=VALUE",
    callback=launch_options,
    help="Of the validation's real servers: the options with which --calibrated was made.",
)
@click.option("--concurrency", default="1,4,16,64,256", metavar="LIST", callback=whole_numbers)
@click.option(
    "--steps",
    default="0.3,1,3,10,30,100,300",
    metavar="LIST",
    callback=_numbers,
    help="Of the map: the verifier's step for one row, ms.",
)
@click.option(
    "--delays", default="0,100,300,1000,3000", metavar="LIST", callback=_numbers, help="In µs."
)
@click.option(
    "--blocks",
    default=8,
    type=click.IntRange(1),
    help="Windows of each place of the map and of the validation, in which its servers are asked "
    "in turn, and of the host's costs; with 1 there are no intervals. The other studies have one.",
)
@click.option(
    "--seconds",
    "window",
    default=2.0,
    type=FiniteRange(0, min_open=True),
    help="Of a window, at least; long steps get up to ten times as much.",
)
@click.option("--prompt-tokens", default=16, type=click.IntRange(1))
@click.option("--output-tokens", default=128, type=click.IntRange(8))
@click.option(
    "--budget",
    default="60m",
    metavar="TIME",
    callback=seconds,
    help="No server begins beyond it; the last blocks are left out first.",
)
@click.option("--seed", default=0, type=click.IntRange(0))
@click.option(
    "--output",
    default=Path("results/emulated"),
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="A run that was cut off there is taken up. It holds no measured run.",
)
def emulate(
    chosen: list[str],
    calibrated: str | None,
    option: dict[str, str],
    concurrency: list[int],
    steps: list[float],
    delays: list[float],
    blocks: int,
    window: float,
    prompt_tokens: int,
    output_tokens: int,
    budget: float,
    seed: int,
    output: Path,
) -> None:
    """Ask emulated devices where handoffs pay, and compare with what the law said before.

    All results are emulated, and said to be, except the real servers of the validation.
    """
    if min(steps) <= 0:
        raise click.UsageError("--steps must be above 0")
    if "validation" in chosen and calibrated is None:
        raise click.UsageError(
            "the validation compares with this machine: make a table with `pdv-bench calibrate "
            "--output cpu.json`, and give --calibrated cpu.json"
        )
    scope = studies.Scope(
        tuple(sorted(set(concurrency))),
        tuple(sorted(set(steps))),
        tuple(sorted({round(delay) for delay in delays})),
        blocks,
        window,
        Work(prompt_tokens, output_tokens),
    )
    try:
        table = None if calibrated is None else read_cost_table(table_path(calibrated))
        folder = TrialFolder(output)
        left_out = _run(folder, chosen, table, option, scope, Budget(budget), seed)
        page = write_report(folder)
    except (ConfigError, WorkloadError, PlanError) as error:
        raise click.UsageError(str(error)) from error
    except ResultsError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        _say(f"interrupted: what is done is kept in {output}; the same command goes on from there")
        sys.exit(EXIT_INTERRUPTED)
    click.echo(page.read_text(encoding="utf-8"))
    if left_out:
        _say(
            f"{left_out} trials did not fit into the budget; what is done is kept in {output}, and "
            "the same command goes on from there"
        )
        sys.exit(EXIT_LEFT_OUT)


def _run(
    folder: TrialFolder,
    chosen: Sequence[str],
    calibrated: CostTable | None,
    option: Mapping[str, str],
    scope: studies.Scope,
    budget: Budget,
    seed: int,
) -> int:
    """How many trials were left out. Raises ResultsError if not even one fits into the budget."""
    facts = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "machine": machine()}
    fixed = {
        "source": source_digest(),
        "machine": machine(),
        "versions": versions(),
        "seed": seed,
        "prompt_tokens": scope.work.prompt,
        "output_tokens": scope.work.answer,
        "calibrated": None if calibrated is None else calibrated.digest,
        "options": typed_options(option),
    }
    folder.begin(facts, fixed)
    left_out = 0
    with tempfile.TemporaryDirectory() as scratch:
        requests, place = workload(scope.work, seed), Path(scratch)

        def run(groups: Sequence[studies.Group]) -> int:
            return run_trials(folder, groups, requests, budget, place, _say)

        left_out += run(list(studies.host_study(scope)))
        acceptance = read_cost_table(table_path(studies.BASE)).acceptance
        host = studies.host_costs(folder.trials(), acceptance)
        if "validation" in chosen and calibrated is not None:
            left_out += _validate(folder, calibrated, option, scope, budget, place, run)
        if host is None:
            raise ResultsError(
                "the host study is not complete (see trials.jsonl, or give a larger --budget), and "
                "nothing can be predicted without it"
            )
        groups: list[studies.Group] = []
        for name, study in (
            ("valley", studies.valley_study),
            ("delay", studies.delay_study),
            ("devices", studies.device_study),
        ):
            if name in chosen:
                more, predictions = study(scope, host)
                folder.predict(name, predictions)
                groups += more
        if groups:
            left_out += run(groups)
    return left_out


def _validate(
    folder: TrialFolder,
    table: CostTable,
    option: Mapping[str, str],
    scope: studies.Scope,
    budget: Budget,
    scratch: Path,
    run: Callable[[Sequence[studies.Group]], int],
) -> int:
    """Block by block, each with a table of its own time; how many trials were left out, which are
    all of the last blocks."""
    given, left_out, calibration = typed_options(option), 0, CALIBRATION_SECONDS
    for block in range(scope.blocks):
        groups = studies.validation_study(scope, table, block, given)
        windows, takes = left_to_do(folder, groups, budget)
        if windows and budget.left < takes + calibration:
            left_out += windows
        elif windows:
            _say(
                f"validation: block {block + 1} of {scope.blocks}, each of about "
                f"{(takes + calibration) / 60:.1f} minutes, with its calibration"
            )
            began = time.monotonic()
            groups = studies.validation_study(
                scope, recalibrated(table, option, scratch), block, given
            )
            calibration = time.monotonic() - began
            left_out += run(groups)
    return left_out


def _say(text: str) -> None:
    click.echo(text, err=True)
