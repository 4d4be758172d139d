"""``pdv-bench calibrate``: the cost table of a device, measured or computed."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.arguments import launch_options
from bench.emulation.roofline import FLOOR_US, HARDWARE, PAIRS, roofline_table
from launcher.launch_command import OMP_SPIN_COUNT
from launcher.ranges import FiniteRange
from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.emulation.cost_table import CostTable
from pdv_mp.emulation.device_name import is_emulated
from pdv_mp.model.errors import ModelError

if TYPE_CHECKING:
    from bench.emulation.calibration import Axes
    from bench.emulation.contention import Point

DRAFT_LENGTH = 4
PROMPTS, TOKENS = 96, 64
"""How many held-out prompts at least are completed, and with how many tokens, to measure the
acceptance: from all files, whose kinds of text differ in it."""


@click.command(context_settings={"max_content_width": 100, "show_default": True})
@click.option(
    "--roofline",
    type=click.Choice(sorted(HARDWARE)),
    help="Compute the table of this device instead of measuring one.",
)
@click.option(
    "--pair",
    type=click.Choice(sorted(PAIRS)),
    help="With --roofline: the verifier; TinyLlama drafts.",
)
@click.option(
    "--floor-us",
    type=FiniteRange(0),
    help=f"With --roofline: the least that a layer takes.  [default: {FLOOR_US:g}]",
)
@click.option(
    "--acceptance",
    type=FiniteRange(0, 1),
    help="Probability that a draft token is kept.  [default: 0.7 with --roofline, else measured]",
)
@click.option(
    "--option",
    multiple=True,
    metavar="NAME=VALUE",
    callback=launch_options,
    help="Options of pdv-launch that say what is measured: device, threads, model, max-num-seqs.",
)
@click.option("--rounds", default=7, type=click.IntRange(1), help="How often each step is timed.")
@click.option(
    "--overlap",
    is_flag=True,
    help="Processes have cores of their own, and their steps do not wait for each other.",
)
@click.option("--name", help="Of the table.  [default: the file's name]")
@click.option(
    "--output",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The JSON file that is written; give it as --device emulated:FILE.",
)
def calibrate(
    roofline: str | None,
    pair: str | None,
    floor_us: float | None,
    acceptance: float | None,
    option: dict[str, str],
    rounds: int,
    overlap: bool,
    name: str | None,
    output: Path,
) -> None:
    """Write the cost table of a device, for servers that emulate it.

    Without --roofline the steps of a pair (the shipped one, unless --option model=... and
    draft-model=... name another) are timed on the device that --option device=... names.
    """
    if (roofline is None) != (pair is None):
        raise click.UsageError("--roofline and --pair go together")
    if roofline is None and floor_us is not None:
        raise click.UsageError("--floor-us goes with --roofline")
    if roofline is not None and (option or overlap):
        raise click.UsageError(
            "--option and --overlap are for what is measured, not for --roofline"
        )
    if not output.parent.is_dir():
        raise click.UsageError(f"--output {output}: there is no folder {output.parent}")
    try:
        if roofline is not None and pair is not None:
            alpha = 0.7 if acceptance is None else acceptance
            floor = FLOOR_US if floor_us is None else floor_us
            table = roofline_table(roofline, pair, alpha, floor)
        else:
            _with_servers_threads()
            table = _measured(option, acceptance, rounds, overlap, name or output.stem)
    except (ConfigError, ModelError) as error:
        raise click.UsageError(str(error)) from error
    if name is not None:
        table = dataclasses.replace(table, name=name)
    try:
        output.write_text(table.to_json(), encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}") from error
    click.echo(_summary(table, output))


def _with_servers_threads() -> None:
    """Begin anew with the settings under which servers compute, which are read when Python starts:
    threads that spin while they wait would time another machine."""
    wanted = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": OMP_SPIN_COUNT}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        command = [sys.executable, "-m", "bench.cli", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **wanted})


def _measured(
    texts: dict[str, str], acceptance: float | None, rounds: int, overlap: bool, name: str
) -> CostTable:
    import torch

    from bench.emulation.calibration import Stopwatch, axes_of, calibrated_table, measure_steps
    from bench.emulation.contention import measure_contention
    from bench.sweep.errors import PlanError
    from bench.sweep.plan import typed_options
    from launcher.checks import prepare
    from pdv_mp.resources.resources import build_resources

    models = {key: texts.pop(key) for key in ("model", "draft-model") if key in texts}
    try:
        options: dict[str, Any] = {**typed_options(texts), "port": 0}
    except PlanError as error:
        raise ConfigError(str(error)) from error
    if is_emulated(str(options.get("device", "auto"))):
        raise ConfigError("an emulated device has a cost table already")
    if models and acceptance is None:
        raise ConfigError(
            "the acceptance is measured of the shipped pair only: give --acceptance for another"
        )
    given = {key.replace("-", "_"): value for key, value in models.items()}
    config = prepare(EngineConfig.from_options(**options, **given))
    if config.table is not None:
        torch.set_num_threads(config.table.workers[0].threads or 1)
    resources = build_resources(config)
    stopwatch = Stopwatch(resources)
    grids = axes_of(resources, config.scheduling.max_num_batched_tokens)
    with torch.inference_mode():
        steps = measure_steps(stopwatch, grids, rounds, lambda text: click.echo(text, err=True))
        contention = None
        if resources.plan.device.type == "cpu" and torch.get_num_threads() == 1:
            contention = measure_contention(stopwatch, _typical(grids), rounds)
            click.echo(f"{contention:.2f} times as long beside another process", err=True)
    alpha = _acceptance() if acceptance is None else acceptance
    return calibrated_table(resources, config, name, alpha, steps, overlap, contention)


def _typical(grids: Mapping[str, Axes]) -> list[Point]:
    """Of each kind of step a small one and one in the middle of its grid."""
    points = []
    for name, grid in grids.items():
        for part in (0, 0.5):
            axes = (grid.sequences, grid.rows, grid.context)
            count, rows, tokens = (axis[int(part * (len(axis) - 1))] for axis in axes)
            points.append((name, count, rows, tokens))
    return points


def _acceptance() -> float:
    """Of the shipped pair on its held-out prompts, greedily."""
    from bench.acceptance import Task, serve
    from bench.emulation.calibration import acceptance_of
    from bench.load.held_out import HeldOut, tokenizer_of

    windows = HeldOut(tokenizer_of(None)).windows(128)
    prompts = windows[:: max(1, len(windows) // PROMPTS)]
    tasks = [Task(number, 0.0, 0) for number in range(len(prompts))]
    drafted, accepted, cycles = serve("gumbel", prompts, tasks, DRAFT_LENGTH, TOKENS).sum(axis=0)
    click.echo(f"{accepted} of {drafted} draft tokens kept in {cycles} cycles", err=True)
    return round(acceptance_of(float(accepted / cycles), DRAFT_LENGTH), 4)


def _summary(table: CostTable, output: Path) -> str:
    lines = [f"{output}: {table.name}, {table.origin}", f"acceptance {table.acceptance:g}"]
    for step, costs in table.steps.items():
        rows, context = (1, 128) if step in ("verify", "draft") else (128, 0)
        parts = [
            f"{count} × {rows} rows {table.step_us(step, count, rows, context) / 1000:.3f} ms"
            for count in dict.fromkeys((costs.sequences[0], costs.sequences[-1]))
        ]
        lines.append(f"{step}: {', '.join(parts)}")
    return "\n".join(lines)
