"""Replay of a trace: requests that arrive when a file says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bench.load.errors import WorkloadError
from bench.load.held_out import HeldOut
from bench.load.prompt_files import json_lines, prompt_ids, whole_number
from bench.load.workloads import Ask, Prompts

_TRACES = 0x7AC


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their arrival. ``arrivals``: in seconds; ``asks``: number i asks for
    prompt i."""

    arrivals: Sequence[float]
    prompts: Prompts
    asks: Sequence[Ask]
    temperature: float = 0.0

    @property
    def seconds(self) -> float:
        """When the last one arrives."""
        return self.arrivals[-1]

    def scheduled(self) -> Iterator[tuple[float, Ask]]:
        """Arrivals and requests; the same in every block."""
        return zip(self.arrivals, self.asks, strict=True)


def read_trace(
    path: Path,
    tokenizer: Tokenizer,
    seed: int = 0,
    temperature: float = 0.0,
    context: int | None = None,
) -> Trace:
    """A file with a JSON map on each line: ``arrival`` in seconds, in ascending order; ``prompt``,
    a text or a list of ids, or ``prompt_tokens``, the length of one that is then cut from the
    held-out files; ``max_tokens``, the length of the answer. ``context``: most tokens of prompt and
    answer together.

    Raises WorkloadError that names the file and line.
    """
    arrivals: list[float] = []
    prompts: list[list[int]] = []
    asks: list[Ask] = []
    held_out: HeldOut | None = None
    generator = np.random.default_rng((seed, _TRACES))
    for number, (fields, where) in enumerate(json_lines(path)):
        arrivals.append(_arrival(fields, arrivals[-1] if arrivals else 0.0, where))
        tokens = whole_number(fields, "max_tokens", where)
        if ("prompt" in fields) == ("prompt_tokens" in fields):
            raise WorkloadError(f"{where}: one of prompt and prompt_tokens is needed")
        if "prompt" in fields:
            ids = prompt_ids(fields, tokenizer, where)
        else:
            held_out = held_out or HeldOut(tokenizer)
            ids = _cut(held_out, fields, generator, where)
        if context is not None and len(ids) + tokens > context:
            raise WorkloadError(
                f"{where}: prompt and answer have {len(ids)} and {tokens} tokens, more than the "
                f"{context} that the model takes"
            )
        prompts.append(ids)
        asks.append(Ask(number, tokens, int(generator.integers(2**31))))
    if not arrivals:
        raise WorkloadError(f"{path} has no requests")
    return Trace(arrivals, prompts, asks, temperature)


def _arrival(fields: dict[str, Any], before: float, where: str) -> float:
    value = fields.get("arrival")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WorkloadError(f"{where}: arrival must be a number of seconds")
    if not 0 <= value < math.inf:
        raise WorkloadError(f"{where}: arrival must be 0 or more seconds")
    if value < before:
        raise WorkloadError(f"{where}: it arrives before the one on the line above; sort the file")
    return float(value)


def _cut(
    held_out: HeldOut, fields: dict[str, Any], generator: np.random.Generator, where: str
) -> list[int]:
    length = whole_number(fields, "prompt_tokens", where)
    try:
        return held_out.cut(length, generator)
    except WorkloadError as error:
        raise WorkloadError(f"{where}: {error}") from error
