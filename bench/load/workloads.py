"""What clients ask for, drawn so that whoever serves them sees the same requests."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.load.lengths import Lengths
from bench.results.records import Load

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: the number of its prompt, its length and its seed."""

    prompt: int
    max_tokens: int
    seed: int


def drawn(seed: int, block: int, load: str, client: int) -> np.random.Generator:
    """The random numbers of one client under the load of this name in one block."""
    return np.random.default_rng((seed, block, zlib.crc32(load.encode()), client))


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts picked at random, as token ids, and lengths of the answers; greedy unless
    ``temperature`` says otherwise. The end-of-sequence id is ignored, so that every request has
    the length that it asks for.

    ``own_outputs``: the length that each prompt brings with it, where it has one, or is empty;
    ``outputs`` is drawn for the others. ``facts``: what it is, for ``run.json``.
    """

    prompts: Prompts
    outputs: Lengths
    seed: int = 0
    temperature: float = 0.0
    own_outputs: Sequence[int | None] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def asks(self, block: int, load: Load, client: int) -> Iterator[Ask]:
        """The requests of one client, without end; drawn from the seed, the block, the load's name
        and the client's number alone."""
        generator = drawn(self.seed, block, load.name, client)
        while True:
            length = self.outputs.draw(generator)
            prompt = int(generator.integers(len(self.prompts)))
            seed = int(generator.integers(2**31))
            own = self.own_outputs[prompt] if self.own_outputs else None
            yield Ask(prompt, length if own is None else own, seed)
