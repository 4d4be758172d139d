"""Measures what decides how the server uses a GPU: ``python -m bench.gpu_facts``.

Every measurement runs in a process of its own with a time-out; one that fails is reported as failed
and the rest goes on. All together takes less than ten minutes.
"""

from __future__ import annotations

import sys
import time
from datetime import date
from pathlib import Path

import click

from bench.gpu_facts.page import as_json, render
from bench.gpu_facts.runner import run_measurement

TOTAL_SECONDS = 580.0


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Measure less often, in some three minutes.")
@click.option("--only", metavar="NAME,…", help="Only these measurements; writes no page.")
@click.option(
    "--page",
    default="docs/gpu_facts.md",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page to write; the JSON goes beside it.",
)
def main(quick: bool, only: str | None, page: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        print("bench.gpu_facts: this machine has no usable CUDA device", file=sys.stderr)
        sys.exit(2)
    from bench.gpu_facts.measurements import MEASUREMENTS

    names = list(MEASUREMENTS) if only is None else only.split(",")
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(MEASUREMENTS)}")
    outcomes = []
    deadline = time.monotonic() + TOTAL_SECONDS
    for name in names:
        measurement = MEASUREMENTS[name]
        seconds = min(measurement.seconds, max(1.0, deadline - time.monotonic()))
        outcome = run_measurement(name, measurement.title, seconds, quick)
        outcomes.append(outcome)
        print(f"\n{outcome.title} ({outcome.seconds:g} s)")
        for fact in outcome.facts:
            print(f"  {fact.what}: {fact}")
        if outcome.error:
            print(f"  FAILED: {outcome.error}", flush=True)
    if only is None:
        json_path = page.with_suffix(".json")
        page.write_text(render(outcomes, json_path.name, quick, date.today()), encoding="utf-8")
        json_path.write_text(as_json(outcomes, quick, date.today()), encoding="utf-8")
        print(f"\nwrote {page} and {json_path}")
    sys.exit(1 if any(outcome.error for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
