"""Three sentences: what to use, what to expect of it, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.emulation.law import Arrangement, HostCosts, Prediction, Work, best_length
from bench.report.analysis import Analysis
from bench.report.summaries import NOT_COMPARED
from bench.statistics import MIN_BLOCKS
from pdv_mp.emulation.cost_table import CostTable, ModelSizes, StepCosts

LAW_ERROR = 0.1
"""How far the law is taken to be off where no laboratory has measured it."""

_NAMES = {
    Arrangement("unified"): "--topology unified",
    Arrangement("pd"): "--topology pd",
    Arrangement("pdv"): "--topology pdv",
    Arrangement("pdv", groups=2): "--topology pdv --groups 2",
    Arrangement("pdv", groups=2, own_draft_device=True): (
        "pdv with --groups 2 and the draft on a device of its own"
    ),
    Arrangement("pdv", own_draft_device=True, ahead=True): (
        "pdv with --draft-ahead and the draft on a device of its own"
    ),
    Arrangement("unified", replicas=2): "two replicas of unified, each on a device of its own",
}


@dataclass(frozen=True, slots=True)
class Option:
    """A way to serve, with the draft length that is best for it by the law."""

    where: Arrangement
    k: int
    expected: Prediction

    @property
    def name(self) -> str:
        """As one would ask for it."""
        return _NAMES[self.where]


def options(
    table: CostTable, host: HostCosts, concurrency: int, work: Work, devices: int
) -> list[Option]:
    """All ways to serve, the fastest by the law first; simpler ones before what they equal."""
    ways = [
        way
        for way in _NAMES
        if way.groups * way.replicas <= concurrency
        and (devices > 1 or not (way.own_draft_device or way.replicas > 1))
    ]
    most = 8 if table.has_draft else 0
    found = [Option(way, *best_length(table, host, way, concurrency, work, most)) for way in ways]
    return sorted(found, key=lambda option: -option.expected.rate)


def advice(found: Sequence[Option], concurrency: int, error: float, source: str) -> list[str]:
    """The three sentences; ``error``: how far the law is known to be off, as a share."""
    best = found[0]
    clients = f"{concurrency} {'client' if concurrency == 1 else 'clients'} at a time"
    length = (
        f"--num-speculative-tokens {best.k}" if best.k else "no drafts (--num-speculative-tokens 0)"
    )
    what = f"For {clients}, use {best.name} with {length}."
    cycle = best.expected.cycle_us / 1000
    expects = (
        f"By the law of a cycle, with costs that were {source}, expect {best.expected.rate:.0f} "
        f"output tokens/s, a cycle being {cycle:.2f} ms, of which messages take "
        f"{best.expected.messages_us / 1000:.2f} ms."
    )
    others = [option for option in found[1:] if option.name != best.name]
    if not others:
        return [what, expects, f"The law is off by about {error:.0%}, and nothing was compared."]
    second = others[0]
    lead = best.expected.rate / second.expected.rate - 1
    if lead > 2 * error:
        sure = "it is clearly ahead"
    elif lead > error:
        sure = "it is probably ahead"
    else:
        near = [o.name for o in others if best.expected.rate / o.expected.rate - 1 <= error]
        sure = f"that is too little to tell it from {' and '.join(near)}: measure these"
    return [
        what,
        expects,
        f"It is {lead:.1%} ahead of {second.name}, the next best, and the law is off by about "
        f"{error:.0%}, so {sure}.",
    ]


def measured_advice(analysis: Analysis, pair: str, concurrency: int) -> list[str]:
    """The three sentences from a measured run alone, at its nearest concurrency.

    Raises ValueError if the run has no closed loop, or none of its cells enough blocks.
    """
    loads = [load for load in analysis.run.loads if load.concurrency is not None]
    if not loads:
        raise ValueError("the run has no closed loops")
    load = min(loads, key=lambda item: _distance(item.concurrency or 1, concurrency))
    measured = [
        cell
        for cell in analysis.cells
        if (cell.pair, cell.load) == (pair, load.name) and cell.twin_of is None
    ]
    cells = [c for c in measured if c.throughput is not None and c.blocks >= MIN_BLOCKS]
    if not cells:
        raise ValueError(
            f"nothing can be recommended for the pair {pair!r} with {load.concurrency} clients: "
            f"no candidate has the {MIN_BLOCKS} blocks that it takes to compare"
        )
    best = max(cells, key=lambda cell: cell.throughput.value if cell.throughput else 0.0)
    candidate = next(c for c in analysis.run.candidates if c.name == best.candidate)
    length = candidate.options.get("num_speculative_tokens", "auto")
    value = best.throughput
    if value is None:
        raise ValueError("nothing counts")
    span = "" if value.low is None or value.high is None else f" ({value.low:.0f}–{value.high:.0f})"
    nearest = (
        ""
        if load.concurrency == concurrency
        else f", the nearest to {concurrency} that was measured"
    )
    against = [
        c
        for c in analysis.comparisons
        if c.pair == pair and c.load == load.name and best.candidate in (c.candidate, c.reference)
    ]
    # Of two candidates there are comparisons in both directions.
    beaten = dict.fromkeys(
        c.reference if c.candidate == best.candidate else c.candidate
        for c in against
        if c.verdict == ("ahead" if c.candidate == best.candidate else "behind")
    )
    lacking = dict.fromkeys(
        c.reference if c.candidate == best.candidate else c.candidate
        for c in against
        if c.verdict in NOT_COMPARED
    )
    settled = (*beaten, *lacking, best.candidate)
    others = [cell.candidate for cell in measured if cell.candidate not in settled]
    missing = [cell.candidate for cell in measured if cell.candidate in lacking]
    if others:
        sure = f"It was not shown to be ahead of {', '.join(others)}" + (
            f", but of {', '.join(beaten)}" if beaten else ", so what is simplest will do"
        )
    elif beaten:
        sure = f"It was shown to be ahead of {', '.join(beaten)}"
    else:
        sure = "It was compared with nothing else"
    sure += f"; not compared: {', '.join(missing)}." if missing else "."
    return [
        f"Use {best.candidate} with --num-speculative-tokens {length}, at which it was measured.",
        f"Expect {value.value:.0f}{span} output tokens/s with {load.concurrency} clients at a time"
        f"{nearest}.",
        sure,
    ]


def _distance(one: int, other: int) -> float:
    return max(one, other) / min(one, other)


def typed_table(
    draft_us: float, verify_us: float, row_us: float, prefill_us: float, acceptance: float
) -> CostTable:
    """A cost table from a few numbers: steps for one sequence, and what each row more takes. A
    prompt takes ``prefill_us`` however long it is, two prompts twice that."""
    many = 512

    def line(first: float, more: float) -> StepCosts:
        """first + more (sequences x rows - 1), which is linear in each of the two."""
        times = tuple(
            tuple((first + more * (count * rows - 1),) for rows in (1, many)) for count in (1, many)
        )
        return StepCosts((1, many), (1, many), (0,), times)

    prompts = StepCosts(
        (1, many), (1, many), (0,), (((prefill_us,),) * 2, ((prefill_us * many,),) * 2)
    )
    sizes = ModelSizes("typed", "bfloat16", 1, 1, 1, 1, 1 << 20, 1)
    return CostTable(
        name="typed",
        origin="typed in",
        acceptance=acceptance,
        memory_bytes=1 << 40,
        launch_us=0.0,
        synchronize_us=0.0,
        time_slice_us=0.0,
        overlap=False,
        models={"target": sizes, "draft": sizes},
        steps={
            "prefill": prompts,
            "verify": line(verify_us, row_us),
            "prefill_draft": line(0.0, 0.0),
            "draft": line(draft_us, 0.0),
        },
    )
