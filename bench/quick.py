"""A quick comparison with transformers on the same work: ``python -m bench.quick``.

Every round runs every engine once at every concurrency, in rotated order, on fresh prompts of equal
length cut from the held-out files; all generate the same number of tokens greedily and ignore the
end-of-sequence id. Tokens/s is output tokens / wall time, prefill included. The table shows medians
and ranges over the rounds, and the median of the per-round ratios to the better transformers mode.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from pdv_mp import LLM, SamplingParams, assets

Prompts = Sequence[Sequence[int]]
Generate = Callable[[Prompts, int], int]


@dataclass
class Cell:
    """One engine at one concurrency: tokens/s of every round."""

    rates: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median tokens/s."""
        return statistics.median(self.rates)

    def __str__(self) -> str:
        return f"{self.median:.0f} ({min(self.rates):.0f}–{max(self.rates):.0f})"


def held_out_prompts(length: int) -> list[list[int]]:
    """All disjoint windows of ``length`` tokens of the held-out files, taking turns over them."""
    tokenizer = Tokenizer.from_file(str(assets.verifier_path() / "tokenizer.json"))
    files = [tokenizer.encode(text).ids for _, text in assets.heldout_files()]
    windows = [
        [ids[at : at + length] for at in range(0, len(ids) - length, length)] for ids in files
    ]
    most = max(len(part) for part in windows)
    return [part[turn] for turn in range(most) for part in windows if turn < len(part)]


def ours(llm: LLM, speculate: bool) -> Generate:
    """Our server, all prompts at once."""

    def generate(prompts: Prompts, tokens: int) -> int:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, speculate=speculate)
        return sum(len(c.ids) for c in llm.generate([list(p) for p in prompts], params))

    return generate


def transformers_batch(model: torch.nn.Module) -> Generate:
    """transformers' generate on one batch."""

    def generate(prompts: Prompts, tokens: int) -> int:
        batch = torch.tensor(prompts)
        output = model.generate(  # type: ignore[operator]
            batch,
            attention_mask=torch.ones_like(batch),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
        return int(output.shape[0] * (output.shape[1] - batch.shape[1]))

    return generate


def transformers_assisted(model: torch.nn.Module, assistant: torch.nn.Module) -> Generate:
    """transformers' assisted generation, which takes one request at a time."""

    def generate(prompts: Prompts, tokens: int) -> int:
        total = 0
        for prompt in prompts:
            batch = torch.tensor([prompt])
            output = model.generate(  # type: ignore[operator]
                batch,
                attention_mask=torch.ones_like(batch),
                assistant_model=assistant,
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=0,
            )
            total += int(output.shape[1] - batch.shape[1])
        return total

    return generate


def measure(
    engines: dict[str, Generate],
    concurrencies: Sequence[int],
    rounds: int,
    tokens: int,
    length: int,
) -> dict[tuple[str, int], Cell]:
    """Interleaved rounds; the first one is warm-up and is not counted."""
    prompts = held_out_prompts(length)
    cells = {(name, c): Cell() for name in engines for c in concurrencies}
    names = list(engines)
    used = 0
    for turn in range(rounds + 1):
        for concurrency in concurrencies:
            chosen = [prompts[(used + i) % len(prompts)] for i in range(concurrency)]
            used += concurrency
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                started = time.perf_counter()
                made = engines[name](chosen, tokens)
                seconds = time.perf_counter() - started
                if made != concurrency * tokens:
                    raise RuntimeError(f"{name} made {made} tokens, not {concurrency * tokens}")
                if turn:
                    cells[name, concurrency].rates.append(made / seconds)
        print(f"round {turn} of {rounds} done", file=sys.stderr)
    return cells


def table(
    cells: dict[tuple[str, int], Cell], engines: Sequence[str], concurrencies: Sequence[int]
) -> str:
    """A Markdown table of medians and ranges, and the ratios to the better transformers mode."""
    lines = ["| tokens/s: median (range) | " + " | ".join(f"C = {c}" for c in concurrencies) + " |"]
    lines.append("| --- |" + " --- |" * len(concurrencies))
    for name in engines:
        lines.append(f"| {name} | {' | '.join(str(cells[name, c]) for c in concurrencies)} |")
    peers = [name for name in engines if name.startswith("transformers")]
    for name in engines:
        if name in peers:
            continue
        row: list[str] = []
        for c in concurrencies:
            best = max(peers, key=lambda peer: cells[peer, c].median)
            ratios = [
                mine / theirs
                for mine, theirs in zip(cells[name, c].rates, cells[best, c].rates, strict=True)
            ]
            row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        lines.append(f"| {name} ÷ best transformers mode | " + " | ".join(row) + " |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(1))
@click.option("--prompt-length", default=128, show_default=True, type=click.IntRange(1))
@click.option("--concurrency", default="1,8,32", show_default=True, metavar="LIST")
@click.option("--num-speculative-tokens", default=None, type=click.IntRange(1))
def main(
    rounds: int,
    tokens: int,
    prompt_length: int,
    concurrency: str,
    num_speculative_tokens: int | None,
) -> None:
    try:
        concurrencies = [int(part) for part in concurrency.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{concurrency!r} is not a list of numbers") from error
    model, assistant = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        for folder in (assets.verifier_path(), assets.draft_path())
    )
    # Every engine is given the same prompts, so none may keep what it computed for another.
    options: dict[str, Any] = {"enable_prefix_caching": False}
    if num_speculative_tokens is not None:
        options["num_speculative_tokens"] = num_speculative_tokens
    with LLM(**options) as llm:
        engines = {
            "pdv_mp unified, speculating": ours(llm, speculate=True),
            "pdv_mp unified, plain": ours(llm, speculate=False),
            "transformers generate": transformers_batch(model),
            "transformers assistant_model, one by one": transformers_assisted(model, assistant),
        }
        cells = measure(engines, concurrencies, rounds, tokens, prompt_length)
    print(table(cells, list(engines), concurrencies))


if __name__ == "__main__":
    main()
