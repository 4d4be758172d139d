"""``pdv-bench inflate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.inflate.errors import InflateError
from bench.inflate.shapes import SHAPES, find_shape
from bench.inflate.source import find_pair
from launcher.ranges import FiniteRange
from pdv_mp import assets

if TYPE_CHECKING:
    from bench.inflate.agreement import Measurement
    from bench.inflate.checkpoint import Plan, Wish
    from bench.inflate.search import Found

_ROLES = ("verifier", "draft")
_QUESTIONS = ("continuation", "text", "random")


@click.command()
@click.option(
    "--like",
    required=True,
    metavar="SHAPE",
    help=f"Shape to imitate: {', '.join(SHAPES)}, or the path of a config.json.",
)
@click.option(
    "--from",
    "source",
    default=str(assets.verifier_path().parent),
    metavar="FOLDER",
    help="Folder with verifier/ and draft/, or one checkpoint, which is then its own counterpart. "
    "[default: the shipped pair]",
)
@click.option(
    "--role",
    type=click.Choice(_ROLES),
    default="verifier",
    show_default=True,
    help="Which model of the pair is inflated and gets the noise; the other stays as it is. Noise "
    "on the draft leaves the verifier's text as good as it was.",
)
@click.option(
    "--against", metavar="FOLDER", help="Another counterpart than the one that --from gives."
)
@click.option(
    "--agreement",
    type=FiniteRange(0, 1),
    help="Greedy agreement of draft and verifier to reach by noise on the inflated model. "
    "[default: no noise, the very same function]",
)
@click.option("--tolerance", type=FiniteRange(0, 0.5), default=0.01, show_default=True)
@click.option(
    "--measure",
    "question",
    type=click.Choice(_QUESTIONS),
    default="continuation",
    show_default=True,
    help="Agreement on the verifier's own continuation of held-out text (as in a server), on the "
    "text itself, or on random ids.",
)
@click.option(
    "--windows",
    type=click.IntRange(2),
    default=48,
    show_default=True,
    help="How many texts the agreement is measured on.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the new checkpoint.")
@click.option(
    "--dtype",
    type=click.Choice(("bfloat16", "float32")),
    default="bfloat16",
    show_default=True,
)
@click.option(
    "--shard-size",
    type=FiniteRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Largest weight file, in GB.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--threads", type=click.IntRange(1), help="Threads that compute. [default: torch's choice]"
)
@click.option("--dry-run", is_flag=True, help="Print the sizes and write nothing.")
def inflate(
    like: str,
    source: str,
    role: str,
    against: str | None,
    agreement: float | None,
    tolerance: float,
    question: str,
    windows: int,
    output: Path | None,
    dtype: str,
    shard_size: float,
    seed: int,
    threads: int | None,
    dry_run: bool,
) -> None:
    """Make a checkpoint of a big model's true shape that acts as a small model does.

    It costs what a model of that shape costs and is an ordinary Hugging Face checkpoint. With
    --agreement, noise makes it differ from its counterpart as often as wanted.
    """
    try:
        shape = find_shape(like)
    except InflateError as error:
        raise click.BadParameter(str(error), param_hint="--like") from None
    if output is None and not dry_run:
        raise click.UsageError("give --output FOLDER, or --dry-run to see the sizes only.")
    try:
        pair = find_pair(source, "verifier" if role == "verifier" else "draft", against)
        from bench.inflate.checkpoint import make_plan

        plan = make_plan(shape, pair, dtype, int(shard_size * 1e9), seed)
        _print_sizes(plan)
        if output is None or dry_run:
            return
        _set_threads(threads)
        wish = None if agreement is None else _wish(agreement, tolerance, question, windows)
        _make(plan, output, wish)
    except (InflateError, OSError) as error:
        raise click.ClickException(str(error)) from None


def _wish(agreement: float, tolerance: float, question: str, windows: int) -> Wish:
    from bench.inflate.agreement import QUESTIONS, Sample
    from bench.inflate.checkpoint import Wish

    asked = next(one for one in QUESTIONS if one == question)
    return Wish(agreement, tolerance, asked, Sample(windows=windows))


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _make(plan: Plan, output: Path, wish: Wish | None) -> None:
    from bench.inflate.checkpoint import search_scale, write_checkpoint
    from bench.inflate.output import check_free, check_space

    check_free(output)
    check_space(output, plan.nbytes)
    found: Found | None = None
    measured: dict[str, Measurement] = {}
    if wish is not None:
        found, measured = search_scale(plan, wish, _print_step)
        for question, one in measured.items():
            click.echo(
                f"agreement on {question}: {one.rate:.3f} "
                f"(95 % interval {one.low:.3f} to {one.high:.3f})"
            )
            if one.accepted:
                rates = ", ".join(f"{rate:.3f} of {k}" for k, rate in one.accepted.items())
                click.echo(f"accepted / drafted there, by draft length: {rates}")
    with click.progressbar(length=plan.nbytes, label="writing") as bar:
        write_checkpoint(plan, output, wish, found, measured, bar.update)
    click.echo(f"{output}: {plan.shape.name}, {plan.nbytes / 1e9:.2f} GB")


def _print_step(scale: float, measurement: Measurement) -> None:
    click.echo(f"noise {scale:.4f}: agreement {measurement.rate:.4f}", err=True)


def _print_sizes(plan: Plan) -> None:
    from bench.inflate.checkpoint import differences
    from bench.inflate.sizes import part_sizes, size_table

    target = plan.layout.target
    click.echo(size_table(part_sizes(target, plan.dtype.itemsize)))
    kv_bytes = target.kv_bytes_per_token(plan.dtype)
    click.echo(
        f"{len(plan.shards)} weight file{'s' if len(plan.shards) > 1 else ''}, "
        f"{plan.nbytes / 1e9:.3f} GB; KV cache {kv_bytes:,} bytes per token"
    )
    for key, (given, written) in differences(plan).items():
        click.echo(f"{key}: {written} instead of the shape's {given}, as the source needs")
