"""Evaluate the shipped pair on the held-out files: ``python -m bench.models.evaluate``.

Everything is computed by transformers in float32 from the exported checkpoints. The results
replace the text between the markers of the assets' README.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from pdv_mp import assets

BEGIN_MARKER = "<!-- evaluation begins: written by python -m bench.models.evaluate -->"
END_MARKER = "<!-- evaluation ends -->"
PERPLEXITY_WINDOW = 2048
PERPLEXITY_STRIDE = 1024
POSITION_BOUNDS = (0, 256, 1024, 2048)
DRAFT_LENGTHS = range(1, 9)
EARLY_TOKENS = 32
"""New tokens before greedy text usually begins to repeat itself, which is easy to guess."""


@dataclass(frozen=True)
class Perplexity:
    """Summed negative log-likelihoods, in nats, over the held-out files."""

    nats: float
    tokens: int
    utf8_bytes: int
    nats_by_position: tuple[float, ...]
    tokens_by_position: tuple[int, ...]

    @property
    def per_token(self) -> float:
        """Perplexity per token."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8, comparable between tokenizers."""
        return self.nats / math.log(2) / self.utf8_bytes

    def per_token_at(self, bucket: int) -> float:
        """Perplexity of the tokens whose position lies in that range of ``POSITION_BOUNDS``."""
        return math.exp(self.nats_by_position[bucket] / max(1, self.tokens_by_position[bucket]))


@dataclass(frozen=True)
class Acceptance:
    """Counts of simulated greedy speculative decoding at one draft length."""

    draft_length: int
    drafted: int
    accepted: int
    cycles: int
    emitted: int

    @property
    def rate(self) -> float:
        """Accepted over drafted; tokens behind a mismatch count as drafted."""
        return self.accepted / self.drafted

    @property
    def tokens_per_cycle(self) -> float:
        """Tokens emitted for each forward pass of the verifier."""
        return self.emitted / self.cycles


def load_model(folder: Path) -> Any:
    """The checkpoint as a float32 transformers model in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    ).eval()


@torch.no_grad()
def measure_perplexity(model: Any, tokenizer: Any, files: Sequence[tuple[str, str]]) -> Perplexity:
    """Score every token of every file once, ``<|endoftext|>`` before it.

    Windows of ``PERPLEXITY_WINDOW`` tokens start every ``PERPLEXITY_STRIDE``; only tokens that no
    earlier window scored count.
    """
    bounds = POSITION_BOUNDS
    nats = [0.0] * (len(bounds) - 1)
    tokens = [0] * (len(bounds) - 1)
    for _, text in files:
        ids = torch.tensor([tokenizer.bos_token_id, *tokenizer.encode(text)])
        scored = 1
        for start in range(0, len(ids), PERPLEXITY_STRIDE):
            window = ids[start : start + PERPLEXITY_WINDOW]
            if start + len(window) <= scored:
                break
            logits = model(input_ids=window[None, :-1]).logits[0]
            losses = F.cross_entropy(logits, window[1:], reduction="none")
            fresh = losses[scored - start - 1 :]
            positions = torch.arange(scored - start, len(window))
            for bucket in range(len(bounds) - 1):
                inside = (positions >= bounds[bucket]) & (positions < bounds[bucket + 1])
                nats[bucket] += float(fresh[inside].double().sum())
                tokens[bucket] += int(inside.sum())
            scored = start + len(window)
    size = sum(len(text.encode("utf-8")) for _, text in files)
    return Perplexity(sum(nats), sum(tokens), size, tuple(nats), tuple(tokens))


@torch.no_grad()
def greedy_matches(
    verifier: Any, draft: Any, prompt_ids: Sequence[int], new_tokens: int
) -> tuple[list[int], list[bool]]:
    """The verifier's greedy continuation, and where the draft's greedy choice equals it.

    Given the committed text, the draft's choice at a later position is made on the verifier's own
    text as long as every earlier one matched, so one forward pass of the draft over the whole text
    decides every cycle of speculative decoding, whatever the draft length.
    """
    prompt = torch.tensor([list(prompt_ids)])
    output = verifier.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=verifier.config.eos_token_id,
    )
    continuation = output[0, len(prompt_ids) :]
    choices = draft(input_ids=output[:, :-1]).logits[0, len(prompt_ids) - 1 :].argmax(-1)
    return continuation.tolist(), (choices == continuation).tolist()


def simulate_acceptance(matches: Sequence[Sequence[bool]], draft_length: int) -> Acceptance:
    """Replay speculative decoding over rows of matches.

    The first token of a row comes from the prefill. A cycle drafts ``draft_length`` tokens, but
    never past the last token that the verifier itself can still emit.
    """
    drafted = accepted = cycles = emitted = 0
    for row in matches:
        position = 1
        while position < len(row):
            length = min(draft_length, len(row) - position - 1)
            hits = 0
            while hits < length and row[position + hits]:
                hits += 1
            drafted += length
            accepted += hits
            cycles += 1
            emitted += hits + 1
            position += hits + 1
    return Acceptance(draft_length, drafted, accepted, cycles, emitted)


@dataclass(frozen=True)
class Evaluation:
    """Everything that the README shows."""

    verifier: Perplexity
    draft: Perplexity
    acceptances: tuple[Acceptance, ...]
    early_acceptances: tuple[Acceptance, ...]
    agreement: float
    prompts: int
    new_tokens: int
    continuations: tuple[tuple[str, str, str], ...]


def evaluate(
    verifier_folder: Path, draft_folder: Path, prompts: int, new_tokens: int, shown: int
) -> Evaluation:
    """Measure both models; ``shown`` continuations are kept as (name, prompt, continuation)."""
    tokenizer = AutoTokenizer.from_pretrained(verifier_folder)
    verifier, draft = load_model(verifier_folder), load_model(draft_folder)
    files = assets.heldout_files()
    matches: list[list[bool]] = []
    continuations: list[tuple[str, str, str]] = []
    for name, text in tqdm(assets.heldout_prompts(prompts), desc="prompts"):
        ids, row = greedy_matches(verifier, draft, tokenizer.encode(text), new_tokens)
        matches.append(row)
        continuations.append((name, text, tokenizer.decode(ids, skip_special_tokens=True)))
    agreed = sum(sum(row) for row in matches) / sum(len(row) for row in matches)
    return Evaluation(
        verifier=measure_perplexity(verifier, tokenizer, files),
        draft=measure_perplexity(draft, tokenizer, files),
        acceptances=tuple(simulate_acceptance(matches, length) for length in DRAFT_LENGTHS),
        early_acceptances=tuple(
            simulate_acceptance([row[:EARLY_TOKENS] for row in matches], length)
            for length in DRAFT_LENGTHS
        ),
        agreement=agreed,
        prompts=len(matches),
        new_tokens=new_tokens,
        continuations=tuple(continuations[:: max(1, len(continuations) // shown)][:shown]),
    )


def as_markdown(evaluation: Evaluation) -> str:
    """The evaluation as the README shows it."""
    ranges = [f"{low} to {high - 1}" for low, high in itertools.pairwise(POSITION_BOUNDS)]
    lines = [
        f"Held-out text: {evaluation.verifier.utf8_bytes:,} bytes, "
        f"{evaluation.verifier.tokens:,} tokens. Perplexity per token, over all tokens and over "
        "those that stand at the given distance from the start of the context:",
        "",
        "| model | perplexity | bits per byte | " + " | ".join(ranges) + " |",
        "|---|---|---|" + "---|" * len(ranges),
    ]
    for name, result in (("verifier", evaluation.verifier), ("draft", evaluation.draft)):
        cells = [f"{result.per_token_at(bucket):.2f}" for bucket in range(len(ranges))]
        lines.append(
            f"| {name} | {result.per_token:.2f} | {result.bits_per_byte:.3f} | "
            + " | ".join(cells)
            + " |"
        )
    lines += [
        "",
        f"Greedy speculative decoding of {evaluation.prompts} held-out prompts, "
        f"{evaluation.new_tokens} new tokens each. The draft's choice equals the verifier's at "
        f"{evaluation.agreement:.1%} of the positions. Accepted over drafted (a token behind a "
        "mismatch is drafted and not accepted), and tokens emitted per forward pass of the "
        "verifier:",
        "",
        "| draft length | "
        + " | ".join(str(a.draft_length) for a in evaluation.acceptances)
        + " |",
        "|---|" + "---|" * len(evaluation.acceptances),
        "| accepted / drafted | "
        + " | ".join(f"{a.rate:.3f}" for a in evaluation.acceptances)
        + " |",
        f"| the same, first {EARLY_TOKENS} new tokens only | "
        + " | ".join(f"{a.rate:.3f}" for a in evaluation.early_acceptances)
        + " |",
        "| tokens per verifier forward | "
        + " | ".join(f"{a.tokens_per_cycle:.2f}" for a in evaluation.acceptances)
        + " |",
        "",
        f"{len(evaluation.continuations)} greedy continuations by the verifier (the end of the "
        "prompt, then what it wrote):",
    ]
    for name, prompt, continuation in evaluation.continuations:
        tail = "\n".join(prompt.split("\n")[-6:])
        lines += [
            "",
            f"`{name}`",
            "",
            "````text",
            f"{tail}⟦{continuation}⟧",
            "````",
        ]
    return "\n".join(line.rstrip() for line in "\n".join(lines).split("\n"))


def replace_between_markers(
    text: str, section: str, begin_marker: str = BEGIN_MARKER, end_marker: str = END_MARKER
) -> str:
    """``text`` with everything between the two markers replaced.

    Raises ``ValueError`` where a marker is missing.
    """
    begin, end = text.find(begin_marker), text.find(end_marker)
    if begin < 0 or end < begin:
        raise ValueError(
            f"the page lacks the lines {begin_marker!r} and {end_marker!r}: put them where the "
            "results belong"
        )
    return f"{text[: begin + len(begin_marker)]}\n\n{section}\n\n{text[end:]}"


@click.command()
@click.option(
    "--verifier",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=assets.verifier_path(),
    help="Folder of the verifier.  [default: the shipped one]",
)
@click.option(
    "--draft",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=assets.draft_path(),
    help="Folder of the draft.  [default: the shipped one]",
)
@click.option("--prompts", type=click.IntRange(1), default=64, show_default=True)
@click.option("--new-tokens", type=click.IntRange(3), default=128, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "--readme",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=None,
    help="README whose evaluation section is replaced; without it the results are only printed.",
)
def main(
    verifier: Path, draft: Path, prompts: int, new_tokens: int, threads: int, readme: Path | None
) -> None:
    """Measure perplexity and acceptance on the held-out files."""
    torch.set_num_threads(threads)
    section = as_markdown(evaluate(verifier, draft, prompts, new_tokens, shown=5))
    click.echo(section)
    if readme is not None:
        replaced = replace_between_markers(readme.read_text(encoding="utf-8"), section)
        readme.write_text(replaced, encoding="utf-8")


if __name__ == "__main__":
    main()
