"""The two measurements, and their intervals."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from bench.gateway.streams import HttpStream, ZmqStream, run_streams
from pdv_mp import LLM

RESAMPLES = 4000
PROMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float], seed: int = 0) -> Interval:
        """Of independent samples, of which there is one at least."""
        values = np.asarray(samples, np.float64)
        picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
        low, high = np.quantile(np.median(values[picks], axis=1), (0.025, 0.975))
        return cls(float(np.median(values)), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, slots=True)
class EventCost:
    """CPU of the gateway's process per event, in microseconds, over rounds of streams."""

    microseconds: Interval
    events: int
    tokens_per_event: float
    streams: int
    rounds: int


@dataclass(frozen=True, slots=True)
class AddedTime:
    """Time to first token over HTTP, over ZeroMQ, and the median of the pairs' differences; ms."""

    http: Interval
    zmq: Interval
    added: Interval
    pairs: int


def prompts(count: int, generator: random.Random, top: int = 250) -> list[list[int]]:
    """So many different prompts."""
    return [[generator.randrange(10, top) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def event_cost(llm: LLM, url: str, streams: int, tokens: int, rounds: int) -> EventCost:
    """CPU from /proc around each round; one round more is run before and not counted. Raises
    LoadError."""
    process = psutil.Process(llm.pids["gateway"])
    generator = random.Random(1)
    run_streams(url, prompts(streams, generator), tokens)
    costs, events, asked = [], 0, 0
    for _ in range(rounds):
        before = process.cpu_times()
        sent = run_streams(url, prompts(streams, generator), tokens)
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        costs.append(1e6 * used / sent.events)
        events += sent.events
        asked += sent.tokens
    return EventCost(Interval.of(costs), events, asked / events, streams, rounds)


def added_time(llm: LLM, url: str, pairs: int, tokens: int) -> AddedTime:
    """The same prompt over both, which goes first by turns; ten pairs are run before and not
    counted. Raises LoadError."""
    generator = random.Random(2)
    over_http, over_zmq = [], []
    with HttpStream(url) as http, ZmqStream(llm.ipc) as zmq:
        for number, prompt in enumerate(prompts(pairs + 10, generator)):
            found: dict[bool, float] = {}
            for is_http in (number % 2 == 0, number % 2 == 1):
                stream = http if is_http else zmq
                found[is_http] = stream.first_token_ns(prompt, tokens) / 1e6
            if number >= 10:
                over_http.append(found[True])
                over_zmq.append(found[False])
    added = [one - other for one, other in zip(over_http, over_zmq, strict=True)]
    return AddedTime(Interval.of(over_http), Interval.of(over_zmq), Interval.of(added), pairs)
