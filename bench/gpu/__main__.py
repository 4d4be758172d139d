"""Measures the engine's speed on a GPU against its goals: ``python -m bench.gpu``.

Every step runs in a process of its own with a budget; one that fails is listed as failed and the
rest goes on. All together takes less than ten minutes.
"""

from __future__ import annotations

import sys
import time
from datetime import date
from pathlib import Path

import click

from bench.gpu.page import as_json, put_section, render
from bench.gpu_facts.runner import run_measurement

TOTAL_SECONDS = 585.0
COMMAND = (sys.executable, "-m", "bench.gpu.measure")


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Fewer rounds and batches, and no 34B model.")
@click.option("--only", metavar="NAME,…", help="Only these steps; writes no page.")
@click.option(
    "--page",
    default="docs/gpu.md",
    show_default=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The page whose section is replaced; gpu_speed.json goes beside it.",
)
def main(quick: bool, only: str | None, page: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        print("bench.gpu: this machine has no usable CUDA device", file=sys.stderr)
        sys.exit(2)
    from bench.gpu.steps import STEPS

    names = [name for name, step in STEPS.items() if step.in_quick or not quick]
    if only is not None:
        names = only.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(STEPS)}")
    outcomes = []
    deadline = time.monotonic() + TOTAL_SECONDS
    day = date.today()
    for name in names:
        step = STEPS[name]
        seconds = min(step.seconds, max(1.0, deadline - time.monotonic()))
        outcome = run_measurement(name, step.title, seconds, quick, COMMAND)
        outcomes.append(outcome)
        print(f"\n{outcome.title} ({outcome.seconds:g} s)")
        for fact in outcome.facts:
            print(f"  {fact.what}: {fact}")
        if outcome.error:
            print(f"  FAILED: {outcome.error}", flush=True)
        if only is None:
            # After each step, so that a run that is cut off leaves what it has.
            text = put_section(page.read_text(encoding="utf-8"), render(outcomes, quick, day))
            page.write_text(text, encoding="utf-8")
            path = page.with_name("gpu_speed.json")
            path.write_text(as_json(outcomes, quick, day), encoding="utf-8")
    print("\n" + render(outcomes, quick, day))
    sys.exit(1 if any(outcome.error for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
