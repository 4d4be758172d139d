"""How many draft tokens the two acceptance rules keep: ``python -m bench.acceptance``.

The shipped pair completes held-out prompts at several temperatures, with every seed under both
rules. Tokens are counted and nothing is timed. Acceptance rate is accepted / drafted and mean
acceptance length 1 + accepted / cycles, as docs/protocol.md defines them. An interval is the middle
95 % of bootstrap samples, which draw prompts; the seeds of a prompt stay together, and a difference
takes both rules on the same prompts.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bench.models.evaluate import replace_between_markers
from pdv_mp import assets
from pdv_mp.config import EngineConfig
from pdv_mp.resources.resources import build_resources
from pdv_mp.timeline import Timeline, state_index
from pdv_mp.wire.engine import Finish, Open, Stamps, Tokens
from pdv_mp.workers.worker import Worker

RULES = ("gumbel", "rejection")
BEGIN_MARKER = "<!-- table begins: written by python -m bench.acceptance -->"
END_MARKER = "<!-- table ends -->"
RESAMPLES = 10_000

Counts = npt.NDArray[np.int64]
Statistic = Callable[[Counts], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Task:
    """A prompt, by its number, to be completed with this temperature and seed."""

    prompt: int
    temperature: float
    seed: int


def serve(
    rule: str, prompts: Sequence[Sequence[int]], tasks: Sequence[Task], k: int, tokens: int
) -> Counts:
    """Drafted tokens, accepted tokens and cycles of every task: int64 [tasks, 3]."""
    config = EngineConfig.from_options(
        model=str(assets.verifier_path()),
        draft_model=str(assets.draft_path()),
        num_speculative_tokens=k,
        acceptance=rule,
    )
    resources = build_resources(config)
    worker = Worker(resources, config)
    stop_ids = tuple(resources.target.config.eos_token_ids)
    for number, task in enumerate(tasks):
        now = time.monotonic_ns()
        worker.scheduler.submit(
            Open(
                request=number,
                prompt_ids=np.array(prompts[task.prompt], np.int32),
                max_tokens=tokens,
                sampling=(task.temperature, 0, 1.0, 0.0, task.seed),
                stop_ids=stop_ids,
                speculate=True,
                report_timeline=False,
                timeline=Timeline(state_index("front>verify.encode"), now).pack(),
                stamps=Stamps(now, now, now, now),
            )
        )
    counts = np.zeros((len(tasks), 3), np.int64)
    ended = 0
    while ended < len(tasks):
        if not worker.step():
            raise RuntimeError(f"the engine stopped with {len(tasks) - ended} requests open")
        for message in worker.emissions(time.monotonic_ns()):
            if isinstance(message, Tokens):
                counts[message.requests, 0] += message.drafted
                counts[message.requests, 1] += message.accepted
                counts[message.requests, 2] += message.drafted > 0
                if np.any(message.finish == Finish.FAILED):
                    raise RuntimeError(f"requests failed: {message.messages}")
                ended += int(np.count_nonzero(message.finish != Finish.NONE))
    return counts


def rate(counts: Counts) -> npt.NDArray[np.float64]:
    """Accepted / drafted of counts [..., 3]."""
    return np.asarray(counts[..., 1] / counts[..., 0], np.float64)


def length(counts: Counts) -> npt.NDArray[np.float64]:
    """1 + accepted / cycles of counts [..., 3]."""
    return np.asarray(1 + counts[..., 1] / counts[..., 2], np.float64)


def interval(
    statistic: Statistic, counts: Counts, less: Counts | None = None
) -> tuple[float, float, float]:
    """Value and 95 % interval of a statistic of per-prompt counts [prompts, 3]; with ``less`` of
    its difference to those counts of the same prompts."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLES)
    samples = statistic(drawn @ counts)
    value = statistic(counts.sum(axis=0))
    if less is not None:
        samples = samples - statistic(drawn @ less)
        value = value - statistic(less.sum(axis=0))
    low, high = np.quantile(samples, (0.025, 0.975))
    return float(value), float(low), float(high)


def table(counts: dict[tuple[str, float], Counts], temperatures: Sequence[float]) -> str:
    """A Markdown table; ``counts`` [prompts, 3] by rule and temperature."""
    lines = [
        "| temperature | statistic | " + " | ".join(RULES) + " | difference |",
        "| --- | --- | --- | --- | --- |",
    ]
    statistics: tuple[tuple[str, Statistic, int], ...] = (
        ("acceptance rate", rate, 3),
        ("mean acceptance length", length, 2),
    )
    for temperature in temperatures:
        gumbel, rejection = (counts[rule, temperature] for rule in RULES)
        for name, statistic, digits in statistics:
            cells = [
                f"{value:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"
                for sign, (value, low, high) in (
                    ("", interval(statistic, gumbel)),
                    ("", interval(statistic, rejection)),
                    ("+", interval(statistic, rejection, less=gumbel)),
                )
            ]
            lines.append(f"| {temperature:g} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--prompts", "num_prompts", default=64, show_default=True, type=click.IntRange(2))
@click.option("--seeds", default=6, show_default=True, type=click.IntRange(1))
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(3))
@click.option("--draft-tokens", "k", default=4, show_default=True, type=click.IntRange(1))
@click.option("--temperature", default="0.5,0.8,1.0", show_default=True, metavar="LIST")
@click.option(
    "--page",
    default=None,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Page whose table is replaced; without it the table is only printed.",
)
def main(
    num_prompts: int, seeds: int, tokens: int, k: int, temperature: str, page: Path | None
) -> None:
    try:
        temperatures = [float(part) for part in temperature.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{temperature!r} is not a list of numbers") from error
    if not all(0 <= value <= 10 for value in temperatures):
        raise click.BadParameter(f"{temperature!r}: a temperature is between 0 and 10")
    tokenizer = Tokenizer.from_file(str(assets.verifier_path() / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for _, text in assets.heldout_prompts(num_prompts)]
    tasks = [
        Task(prompt, value, seed)
        for value, prompt, seed in itertools.product(
            temperatures, range(len(prompts)), range(seeds)
        )
    ]
    counts: dict[tuple[str, float], Counts] = {}
    for rule in RULES:
        found = serve(rule, prompts, tasks, k, tokens)
        by_prompt = found.reshape(len(temperatures), len(prompts), seeds, 3).sum(axis=2)
        counts.update({(rule, value): by_prompt[i] for i, value in enumerate(temperatures)})
        print(f"{rule}: {found[:, 0].sum()} tokens drafted", file=sys.stderr)
    section = (
        f"{len(prompts)} prompts, {seeds} seeds each, up to {tokens} new tokens, "
        f"{k} draft tokens per cycle:\n\n{table(counts, temperatures)}"
    )
    print(section)
    if page is not None:
        text = page.read_text(encoding="utf-8")
        replaced = replace_between_markers(text, section, BEGIN_MARKER, END_MARKER)
        page.write_text(replaced, encoding="utf-8")


if __name__ == "__main__":
    main()
