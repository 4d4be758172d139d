"""``pdv-bench concurrent``."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import msgspec

from bench.arguments import launch_options, seconds, whole_numbers
from bench.concurrent.experiment import LEVELS, REPEATS, Experiment, Servers, Variant, variants
from bench.concurrent.tables import SCHEMA_VERSION, TARGETS, markdown, rows, said_of_cache
from bench.handoff.tables import write_csv
from bench.load import WorkloadError, tokenizer_of
from bench.sweep.environment import environment
from pdv_mp.client.llm import LaunchError

PROMPT = "Explain quantum computing in simple terms"
TOKENS = 50
CSV, JSON, PAGE = "concurrent.csv", "concurrent.json", "concurrent.md"
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

CHUNKS = (
    "Chunked prefill cannot be switched off. Without it means --max-num-batched-tokens {tokens} "
    "and --prefill-priority 1: a chunk is as long as the prompt, so none is divided and none "
    "shares its step with another."
)


@click.command(context_settings={"show_default": True})
@click.option("--topology", default="unified", help="Of all servers.")
@click.option(
    "--levels",
    default=",".join(map(str, LEVELS)),
    metavar="LIST",
    callback=whole_numbers,
    help="How many requests at once.",
)
@click.option("--tokens", default=TOKENS, type=click.IntRange(1), help="Of each answer.")
@click.option("--prompt", default=PROMPT, metavar="TEXT")
@click.option("--repeats", default=REPEATS, type=click.IntRange(1), help="At most.")
@click.option(
    "--budget",
    default="40s",
    metavar="TIME",
    callback=seconds,
    help="No round begins that would not end in it; the first is always run.",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=launch_options,
    help="An option of pdv-launch for all servers; may be given several times.",
)
@click.option(
    "--output",
    default=Path("results"),
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder for {CSV}, {PAGE} and {JSON}.",
)
def concurrent(
    topology: str,
    levels: list[int],
    tokens: int,
    prompt: str,
    repeats: int,
    budget: float,
    options: dict[str, str],
    output: Path,
) -> None:
    """One prompt at once 1, 5, 10, 50, 100 and 200 times, with and without chunked prefill and
    prefix caching: time against its targets, throughput, and memory until the server breaks."""
    try:
        ids = tokenizer_of(options.get("model")).encode(prompt).ids
    except WorkloadError as error:
        raise click.ClickException(str(error)) from error
    if not ids:
        raise click.BadParameter("it has no tokens", param_hint="--prompt")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"{error.filename or output}: {error.strerror}") from error
    found = variants(len(ids), {name.replace("-", "_"): value for name, value in options.items()})
    facts = {
        "schema_version": SCHEMA_VERSION,
        "version": metadata.version("pdv-mp"),
        "topology": topology,
        "prompt": prompt,
        "prompt_tokens": len(ids),
        "max_tokens": tokens,
        "targets_s": {str(level): target for level, target in TARGETS.items()},
        "chunked_prefill": CHUNKS.format(tokens=len(ids)),
        "environment": environment(),
    }
    with Servers(topology, found, prompt, tokens) as servers:
        experiment = Experiment(
            servers,
            found,
            sorted(set(levels)),
            repeats,
            budget,
            lambda text: print(text, file=sys.stderr),
        )
        try:
            servers.start()
            experiment.run()
        except LaunchError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            print("interrupted: nothing was written", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
    try:
        write(output, experiment, found, facts)
    except OSError as error:
        raise click.ClickException(f"{error.filename or output}: {error.strerror}") from error
    if any(burst.error for burst in experiment.bursts):
        sys.exit(EXIT_FAILED)


def write(
    output: Path, experiment: Experiment, variants: list[Variant], facts: dict[str, Any]
) -> None:
    """Writes the three files, the raw one last, and prints the page. Raises OSError."""
    table = rows(experiment.bursts, variants, experiment.broken)
    cache = said_of_cache(table, facts["prompt_tokens"])
    page = f"{markdown(table)}\n\n{facts['chunked_prefill']} {cache}\n"
    raw = {
        **facts,
        "prefix_caching": cache,
        "variants": {variant.name: dict(variant.options) for variant in variants},
        "breaking_points": {
            variant.name: experiment.broken.get(variant.name) for variant in variants
        },
        "bursts": experiment.bursts,
    }
    write_csv(output / CSV, table)
    (output / PAGE).write_text(page, encoding="utf-8")
    (output / JSON).write_bytes(msgspec.json.format(msgspec.json.encode(raw)) + b"\n")
    print(page)
