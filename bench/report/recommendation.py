"""What to run: for each load the fastest candidate, unless a simpler one is not shown to be behind.

Simpler is what has fewer processes, as they were counted while it was measured. Candidates are
eligible with as many blocks as a comparison needs; without any there is no choice. What is fast is
measured by output tokens/s: a load below what all can serve is a tie by that measure, and the
simplest is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.report.cells import CLIENTS
from bench.report.comparison import Summaries, compared
from bench.report.summaries import (
    CellSummary,
    Choice,
    Comparison,
    Noise,
    Recommendation,
)
from bench.results.records import Load, Pair, Run
from bench.statistics import MIN_BLOCKS
from pdv_mp.config import ConfigError
from pdv_mp.topology import topology

LAUNCHER = "launcher"
"""Starts and watches the processes that serve; every server has one."""

Pairwise = Mapping[tuple[str, str, str], Comparison]
"""Comparisons of one pair by load, candidate and reference."""


def recommendations(
    run: Run,
    summaries: Summaries,
    comparisons: Sequence[Comparison],
    noise: Sequence[Noise],
    alpha: float,
) -> tuple[Recommendation, ...]:
    """For each pair; ``alpha``: of all comparisons together."""
    found = []
    for pair in run.pairs:
        of = {(c.load, c.candidate, c.reference): c for c in comparisons if c.pair == pair.name}
        cells = {
            load.name: [summaries[pair.name, each.name, load.name] for each in compared(run)]
            for load in run.loads
        }
        choices = tuple(_choose(load, cells[load.name], of) for load in run.loads)
        sentences = (
            _what(pair, choices, run.loads),
            _how_much(choices, run.loads),
            _how_sure(choices, of, [n for n in noise if n.pair == pair.name], alpha),
        )
        found.append(Recommendation(pair.name, choices, sentences))
    return tuple(found)


def processes(cell: CellSummary) -> int | None:
    """How many processes serve: as counted, else as the table of topologies says; None for a row
    that is not in it and was never measured."""
    counted = len(cell.uses.keys() - {CLIENTS, LAUNCHER})
    if counted:
        return counted
    try:
        return len(topology(cell.topology).process_names)
    except ConfigError:
        return None


def load_text(load: Load) -> str:
    """A load in words."""
    if load.kind == "closed":
        return f"{load.concurrency} {'client' if load.concurrency == 1 else 'clients'}"
    if load.kind == "open":
        return f"{load.rate:g} requests/s"
    return f"the trace {load.name}"


def _choose(load: Load, cells: Sequence[CellSummary], of: Pairwise) -> Choice:
    rates = {
        cell.candidate: cell.throughput
        for cell in cells
        if cell.throughput is not None and cell.blocks >= MIN_BLOCKS
    }
    if not rates:
        return Choice(load.name, None, None, None, None, None, None, False)
    by_speed = sorted(rates, key=lambda name: rates[name].value, reverse=True)
    fastest = by_speed[0]
    tied = [fastest]
    for name in by_speed[1:]:
        if of[load.name, name, fastest].verdict in ("no difference shown", "ahead"):
            tied.append(name)
    counts = {cell.candidate: processes(cell) for cell in cells}
    most = max((count for count in counts.values() if count is not None), default=0) + 1
    # Of those with as many processes the fastest is first, and min takes the first.
    chosen = min(tied, key=lambda name: counts[name] or most)
    others = [name for name in by_speed if name != chosen]
    best = of[load.name, chosen, others[0]] if others else None
    return Choice(
        load=load.name,
        candidate=chosen,
        processes=counts[chosen],
        fastest=fastest,
        throughput=rates[chosen],
        runner_up=others[0] if others else None,
        ratio=None if best is None else best.ratio,
        shown=best is not None and best.verdict == "ahead",
    )


def _what(pair: Pair, choices: Sequence[Choice], loads: Sequence[Load]) -> str:
    by_candidate: dict[str, list[Load]] = {}
    for choice, load in zip(choices, loads, strict=True):
        if choice.candidate is not None:
            by_candidate.setdefault(choice.candidate, []).append(load)
    if not by_candidate:
        return (
            f"Nothing can be recommended for the pair {pair.name} yet: no candidate has the "
            f"{MIN_BLOCKS} blocks that count which a comparison needs."
        )
    parts = [f"{name} for {_loads_text(of)}" for name, of in by_candidate.items()]
    pairs = list(zip(choices, loads, strict=True))
    left = [load for choice, load in pairs if choice.candidate is None]
    ties = [load for choice, load in pairs if choice.runner_up is not None and not choice.shown]
    unknown = f" (nothing is known for {_loads_text(left)})" if left else ""
    if ties and any(choice.shown for choice in choices):
        unknown += f"; for {_loads_text(ties)} this is not shown to be faster than the next best"
    return f"On this machine, with the pair {pair.name}, run {_listed(parts)}{unknown}."


def _how_much(choices: Sequence[Choice], loads: Sequence[Load]) -> str:
    known = [
        (choice, load) for choice, load in zip(choices, loads, strict=True) if choice.throughput
    ]
    if not known:
        return "What was measured so far is in the tables, and proves nothing."
    shown = [(choice, load) for choice, load in known if choice.shown and choice.ratio]
    if not shown:
        return _tie(*known[-1])
    choice, load = max(shown, key=lambda place: place[0].ratio.low if place[0].ratio else 0.0)
    ratio = choice.ratio
    if ratio is None:
        return _tie(choice, load)
    return (
        f"The lead is greatest for {load_text(load)}, where {choice.candidate} makes "
        f"{_rate(choice)}, {ratio.estimate:.2f} times (interval {ratio.low:.2f} to "
        f"{ratio.high:.2f}) what {choice.runner_up} makes, the next best."
    )


def _tie(choice: Choice, load: Load) -> str:
    if choice.runner_up is None or choice.ratio is None:
        return f"For {load_text(load)}, {choice.candidate} makes {_rate(choice)}; nothing else was."
    ratio = choice.ratio
    return (
        f"Nothing was shown to be ahead of the others, so this is the simplest, with "
        f"{choice.processes} processes: for {load_text(load)}, {choice.candidate} makes "
        f"{_rate(choice)}, {ratio.estimate:.2f} times (interval {ratio.low:.2f} to "
        f"{ratio.high:.2f}) what {choice.runner_up} makes."
    )


def _how_sure(choices: Sequence[Choice], of: Pairwise, noise: Sequence[Noise], alpha: float) -> str:
    used = [
        of[choice.load, choice.candidate, choice.runner_up]
        for choice in choices
        if choice.candidate is not None and choice.runner_up is not None
    ]
    effects = [found.smallest_effect for found in used if found.smallest_effect is not None]
    if not effects:
        return f"A comparison needs {MIN_BLOCKS} blocks of two candidates or more."
    blocks = min(found.blocks for found in used)
    said = (
        f"All intervals of ratios hold at once with a probability of {1 - alpha:.0%}, from "
        f"{blocks} blocks or more; a difference of {max(effects) - 1:.0%} would have been found "
        "for each load in four of five runs"
    )
    floors = [found.floor for found in noise if found.ratio is not None]
    if floors:
        return f"{said}; two equal servers differed by up to {max(floors) - 1:.1%}."
    return f"{said}; what equal servers differ by was not measured."


def _rate(choice: Choice) -> str:
    rate = choice.throughput
    if rate is None:
        return "nothing"
    if rate.low is None or rate.high is None:
        return f"{rate.value:.0f} tokens/s"
    return f"{rate.value:.0f} tokens/s ({rate.low:.0f} to {rate.high:.0f})"


def _loads_text(loads: Sequence[Load]) -> str:
    """Closed loops as one list of numbers."""
    clients = [str(load.concurrency) for load in loads if load.kind == "closed"]
    closed = f"{_listed(clients)} {'client' if clients == ['1'] else 'clients'}"
    others = [load_text(load) for load in loads if load.kind != "closed"]
    return _listed([*([closed] if clients else []), *others])


def _listed(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
