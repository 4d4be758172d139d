"""The ablations: what is varied, the value that all others are compared with, and the load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.load import Lengths, parse_lengths


@dataclass(frozen=True, slots=True)
class Ablation:
    """One question. ``varied`` of ``topology`` takes the ``values``, the first being what the
    others are compared with. ``loads``: closed loops of so many clients. ``options``: of all
    servers. ``says``: what is varied, as the subject of a sentence."""

    name: str
    says: str
    topology: str
    varied: str
    values: tuple[str, ...]
    loads: tuple[int, ...]
    options: tuple[tuple[str, str], ...] = ()
    prompt_tokens: str = "128"
    output_tokens: str = "uniform:16-112"

    @property
    def candidates(self) -> dict[str, tuple[str, dict[str, str]]]:
        """As `pdv-bench sweep --topologies` would read them."""
        return {
            f"{self.varied}={value}": (self.topology, {self.varied: value}) for value in self.values
        }

    @property
    def common(self) -> Mapping[str, str]:
        """Options of all servers."""
        return dict(self.options)

    @property
    def lengths(self) -> tuple[Lengths, Lengths]:
        """Of prompts and answers."""
        return parse_lengths(self.prompt_tokens), parse_lengths(self.output_tokens)


ABLATIONS = {
    ablation.name: ablation
    for ablation in (
        Ablation(
            "queue-factor",
            "how many requests are admitted beyond the batch",
            "unified",
            "queue-factor",
            ("1.2", "1", "1.5", "2", "100"),
            (32,),
            (("max-num-seqs", "8"),),
        ),
        Ablation(
            "max-num-seqs",
            "the largest batch",
            "pdv",
            "max-num-seqs",
            ("32", "8", "16", "64", "128"),
            (64,),
        ),
        Ablation(
            "prefill-priority",
            "prefill's share of a cycle",
            "unified",
            "prefill-priority",
            ("0.5", "0.1", "0.25", "1"),
            (8, 32),
        ),
        Ablation(
            "draft-length",
            "the draft length",
            "unified",
            "num-speculative-tokens",
            ("4", "0", "1", "2", "6", "8", "auto"),
            (1, 8, 32),
        ),
        Ablation(
            "batched-tokens",
            "the largest chunk of prompts",
            "unified",
            "max-num-batched-tokens",
            ("512", "16384"),
            (8, 32),
            prompt_tokens="512",
        ),
        Ablation(
            "one-at-a-time",
            "one sequence at a time",
            "unified",
            "max-num-seqs",
            ("32", "1"),
            (1, 8, 32),
        ),
    )
}
"""By name; a queue factor of 100 admits all that these loads have, as an unbounded one would."""

WAIT = "wait"
"""How processes wait is asked by bench.handoff's rounds: a server that spins must be stopped while
others are measured."""

WAIT_VARIANTS = ("pdv", "pdv+wait=hybrid", "pdv+wait=spin")
WAIT_LOADS = (1, 8)

NOT_HERE = {"streams": "needs a GPU whose processes run side by side (MPS); the pair runs on a CPU"}
"""What is not measured, and why."""
