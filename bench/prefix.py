"""What a shared prompt saves: ``python -m bench.prefix``.

Every round takes a fresh beginning from the held-out files and sends requests with that beginning
and endings of their own, one after another, to two servers that differ in prefix caching alone.
The time to first token is the server's own, from the arrival of the request. The table shows the
first request of each round and all later ones (median, range), and the per-round ratio of the first
one's time to the later ones' median.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, field

import click

from bench.quick import held_out_prompts
from pdv_mp import LLM, SamplingParams


@dataclass
class Times:
    """Milliseconds to the first token: of the first request of each round, and of the later."""

    first: list[float] = field(default_factory=list)
    later: list[list[float]] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Per round: the first request's time over the median of the later ones'."""
        return [
            first / statistics.median(later)
            for first, later in zip(self.first, self.later, strict=True)
        ]


def run_round(llm: LLM, prompts: list[list[int]], times: Times) -> None:
    """One request after another; the first one finds nothing in the cache."""
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    found = []
    for prompt in prompts:
        (completion,) = llm.generate([prompt], params)
        milliseconds = completion.timing["ttft_ms"]
        if milliseconds is None:
            raise RuntimeError("a request ended without a token")
        found.append(milliseconds)
        times.cached.append(completion.usage["cached_tokens"])
    times.first.append(found[0])
    times.later.append(found[1:])


def _spread(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


@click.command(help=__doc__)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--requests", default=32, show_default=True, type=click.IntRange(2))
@click.option("--shared", default=1500, show_default=True, type=click.IntRange(1))
@click.option("--own", default=16, show_default=True, type=click.IntRange(1))
def main(rounds: int, requests: int, shared: int, own: int) -> None:
    beginnings = held_out_prompts(shared)
    endings = held_out_prompts(own)
    if len(beginnings) < rounds:
        raise click.BadParameter(f"the held-out files have {len(beginnings)} such beginnings")
    names = {True: "with prefix caching", False: "without"}
    times = {caching: Times() for caching in names}
    with LLM() as caching, LLM(enable_prefix_caching=False) as plain:
        llms = {True: caching, False: plain}
        for llm in llms.values():
            llm.generate([endings[-1]], SamplingParams(max_tokens=8, ignore_eos=True))
        for turn in range(rounds):
            prompts = [beginnings[turn] + endings[turn * requests + i] for i in range(requests)]
            for key in (True, False) if turn % 2 else (False, True):
                run_round(llms[key], prompts, times[key])
            print(f"round {turn + 1} of {rounds} done", file=sys.stderr)
    print("| time to first token, ms | first request | later requests | first ÷ later |")
    print("| --- | --- | --- | --- |")
    for key, name in names.items():
        measured = times[key]
        later = [value for part in measured.later for value in part]
        print(
            f"| {name} | {_spread(measured.first, 0)} | {_spread(later, 1)} | "
            f"{_spread(measured.ratios, 1)} |"
        )
    cached = sorted(set(times[True].cached))
    print(
        f"\n{rounds} rounds of {requests} requests, {shared} shared tokens and {own} of their own; "
        f"cached_tokens: {', '.join(map(str, cached))}"
    )


if __name__ == "__main__":
    main()
