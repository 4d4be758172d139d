"""Which servers are asked how often, and in what order.

Rounds are interleaved: each asks every variant in turn, so that a slow minute is no variant's own.
The first round climbs level after level. The *breaking point* of a variant is the first one at
which a request is refused, fails or is lost; it then goes no higher. Later rounds repeat what is
cheap, as long as there is time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.concurrent.bursts import Burst, Bursts
from bench.load.errors import LoadError
from bench.servers import Server
from pdv_mp.client.client import ServerError, ServerUnreachable
from pdv_mp.client.llm import LaunchError

LEVELS = (1, 5, 10, 50, 100, 200)
REPEATS = 6
"""The extremes of so many values enclose the true median with 97 % (bench/statistics.py)."""

REQUESTS_OF_LEVEL = 150
"""A level is repeated so often that it has no more than about so many requests."""

REPEATED_LEVEL = 50
"""Higher levels are for the breaking point: they are tried once, where a variant climbs."""

_WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Variant:
    """A server: whether it divides prompts into chunks and keeps prefixes, and its options of
    ``pdv-launch``; ``climbs``: whether it goes on to levels above :data:`REPEATED_LEVEL`."""

    name: str
    chunked_prefill: bool
    prefix_caching: bool
    options: Mapping[str, Any]
    climbs: bool = True


def variants(prompt_tokens: int, options: Mapping[str, Any]) -> list[Variant]:
    """With and without chunked prefill and prefix caching; the first has both, as the sources'
    server had, and it alone climbs to the highest levels.

    Chunked prefill cannot be switched off. What comes closest is a chunk as long as the prompt: no
    prompt is divided, and none shares its step with another, which is the serialising that the
    sources blame. With it, a chunk has its default length and holds many short prompts.
    """
    whole = {"max_num_batched_tokens": prompt_tokens, "prefill_priority": 1.0}
    found = []
    for chunked in (True, False):
        for caching in (True, False):
            name = " + ".join(
                text
                for text, wanted in (("chunked prefill", chunked), ("prefix caching", caching))
                if wanted
            )
            own = {"enable_prefix_caching": caching, **({} if chunked else whole)}
            climbs = chunked and caching
            found.append(Variant(name or "neither", chunked, caching, {**options, **own}, climbs))
    return found


class Asks(Protocol):
    """Runs one burst on a variant's server. Raises what servers raise."""

    def __call__(self, variant: Variant, requests: int, round: int) -> Burst: ...


@dataclass(slots=True)
class Experiment:
    """The bursts of all rounds. ``levels``: ascending; ``repeats``: at most; ``budget``: seconds,
    after which no round begins that would go beyond it."""

    ask: Asks
    variants: Sequence[Variant]
    levels: Sequence[int]
    repeats: int = REPEATS
    budget: float = float("inf")
    say: Callable[[str], None] = lambda text: None
    bursts: list[Burst] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    _took: dict[tuple[int, int], float] = field(default_factory=dict)

    def run(self) -> None:
        """All rounds. The first, which is warm-up, does not count."""
        began = time.monotonic()
        for variant in self.variants:
            for level in [level for level in self.levels if level <= _WARM_UP]:
                self._burst(variant, level, 0)
        self.bursts.clear()
        self.broken.clear()
        for round in range(1, self.repeats + 1):
            places = list(self._places(round))
            expected = sum(self._took.get(place, 0.0) for place in places)
            if round > 1 and time.monotonic() - began + expected > self.budget:
                self.say(f"the budget of {self.budget:g} s was spent")
                return
            for number, level in places:
                self._measure(number, level, round)
            elapsed = time.monotonic() - began
            self.say(f"round {round} of {self.repeats} done after {elapsed:.0f} s")

    def _places(self, round: int) -> Iterator[tuple[int, int]]:
        """Variants, by number, and levels, in order."""
        for turn in range(len(self.variants)):
            number = (round + turn) % len(self.variants)
            for level in self.levels:
                if round <= self._rounds_of(self.variants[number], level):
                    yield number, level

    def _measure(self, number: int, level: int, round: int) -> None:
        variant = self.variants[number]
        if level >= self.broken.get(variant.name, level + 1):
            return
        began = time.monotonic()
        burst = self._burst(variant, level, round)
        self._took[number, level] = time.monotonic() - began
        if not burst.is_whole:
            self.broken[variant.name] = level

    def _rounds_of(self, variant: Variant, level: int) -> int:
        if level > REPEATED_LEVEL:
            return int(variant.climbs)
        return min(self.repeats, REQUESTS_OF_LEVEL // level)

    def _burst(self, variant: Variant, level: int, round: int) -> Burst:
        try:
            burst = self.ask(variant, level, round)
        except (LoadError, LaunchError, ServerError, ServerUnreachable) as error:
            text = " ".join(str(error).split())
            burst = Burst(
                variant=variant.name, requests=level, round=round, failed=level, error=text
            )
            self.say(f"{variant.name}, {level} at once: {text}")
        self.bursts.append(burst)
        return burst


class Servers:
    """Asks servers of all variants, which all run; a context manager that ends them."""

    def __init__(
        self, topology: str, variants: Sequence[Variant], prompt: str, tokens: int
    ) -> None:
        self._servers = {v.name: Server(topology, dict(v.options)) for v in variants}
        self._prompt = prompt
        self._tokens = tokens

    def start(self) -> None:
        """Raises LaunchError for one that does not start."""
        for server in self._servers.values():
            server.ensure()

    def __call__(self, variant: Variant, requests: int, round: int) -> Burst:
        server = self._servers[variant.name]
        restarts = server.restarts_when_idle()
        llm = server.ensure()
        with Bursts(llm.ipc, llm.pids, server.is_running) as bursts:
            burst = bursts.run(
                self._prompt, self._tokens, variant=variant.name, requests=requests, round=round
            )
        if server.restarts_when_idle() != restarts:
            raise LoadError("a process of the server died and was started again")
        return burst

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self._servers.values():
            server.close()
