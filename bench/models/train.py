"""Train the shipped model pair: ``python -m bench.models.train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import torch

from bench.models.pipeline import Pipeline, Recipe
from bench.models.shapes import TrainingPlan
from launcher.ranges import FiniteRange

STAGES = ("corpus", "verifier", "continuations", "draft", "export")
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def fastest_precision() -> str:
    """``bfloat16`` where the CPU multiplies matrices of it in hardware, else ``float32``."""
    capability = torch.backends.cpu.get_cpu_capability()
    has_tiles = torch.cpu.get_capabilities().get("amx_bf16", False)
    return "bfloat16" if has_tiles and capability.startswith("AVX512") else "float32"


def scaled(plan: TrainingPlan, effort: float) -> TrainingPlan:
    """The plan with its number of steps multiplied."""
    return replace(plan, steps=max(1, round(plan.steps * effort)))


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/models/exported"),
    show_default=True,
    help="Folder that receives verifier/ and draft/.",
)
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/models"),
    show_default=True,
    help="Checkpoints; a run that was stopped goes on from them.",
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "--stage",
    type=click.Choice((*STAGES, "all")),
    default="all",
    show_default=True,
    help="One stage alone, or all of them in order.",
)
@click.option(
    "--effort",
    type=FiniteRange(0.0, min_open=True),
    default=1.0,
    show_default=True,
    help="Multiplies the number of training steps, for slower or faster machines.",
)
@click.option(
    "--max-steps",
    type=click.IntRange(1),
    default=None,
    help="Stop each training after this many steps of this run (smoke tests).",
)
@click.option(
    "--precision",
    type=click.Choice((*PRECISIONS, "auto")),
    default="auto",
    show_default=True,
    help="Of the matrix products while training; auto is bfloat16 on CPUs with AMX.",
)
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True)
def main(
    output: Path,
    work_dir: Path,
    threads: int,
    stage: str,
    effort: float,
    max_steps: int | None,
    precision: str,
    compiled: bool,
) -> None:
    """Train tokenizer, verifier and draft on the running interpreter's standard library."""
    if not hasattr(torch.optim, "Muon"):
        raise click.ClickException(
            f"training needs torch 2.9 or later for its Muon optimizer, not {torch.__version__}"
        )
    torch.set_num_threads(threads)
    chosen = fastest_precision() if precision == "auto" else precision
    recipe = Recipe()
    recipe = replace(
        recipe,
        verifier_plan=scaled(recipe.verifier_plan, effort),
        draft_plan=scaled(recipe.draft_plan, effort),
    )
    pipeline = Pipeline(work_dir, recipe, PRECISIONS[chosen], compiled, max_steps)
    stages = STAGES if stage == "all" else (stage,)
    click.echo(f"{', '.join(stages)}: {threads} threads, {chosen}, in {work_dir}")
    if "corpus" in stages:
        pipeline.corpus()
    if "verifier" in stages:
        pipeline.train_verifier()
    if "continuations" in stages:
        pipeline.write_continuations()
    if "draft" in stages:
        pipeline.train_draft()
    if "export" in stages:
        pipeline.export(output)
        click.echo(f"exported to {output}")


if __name__ == "__main__":
    main()
