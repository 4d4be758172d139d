"""A comparison as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bench.peers.records import PairRecord, RunRecord, Workload
from bench.peers.summary import (
    AUTO,
    PLAIN,
    CellSummary,
    Summary,
    Versus,
    by_reason,
    is_plain_peer,
)
from bench.statistics import Estimate

Text = Callable[[CellSummary], str]

NOTHING = "–"


def page(summary: Summary) -> str:
    """All tables, without a title."""
    parts = [_facts(summary)]
    for pair in summary.run.pairs:
        for load in summary.run.workloads:
            cells = [summary.cell(pair.name, load.name, c) for c in summary.run.concurrencies]
            if any(cells):
                parts.append(_table(summary, pair, load, cells))
    parts += [_checks(summary), _missing(summary)]
    return "\n\n".join(part for part in parts if part)


def label(engine: str) -> str:
    """``vllm-cpu:draft`` as ``vllm-cpu, draft``."""
    return engine.replace(":", ", ")


def threads(run: RunRecord) -> str:
    """How many each engine computes with."""
    return f"{run.threads} thread{'s' if run.threads > 1 else ''}"


def _facts(summary: Summary) -> str:
    run = summary.run
    machine = run.environment.get("machine", {})
    rounds = ", ".join(
        f"{n} at C = {c}" for n, c in zip(run.rounds, run.concurrencies, strict=True)
    )
    text = (
        f"Measured {run.started[:10]} on {machine.get('cpu') or 'an unnamed CPU'}, {threads(run)} "
        f"for every engine, float32, greedy, prefix caching off. Output tokens/s, prefill "
        f"included: the geometric mean of the rounds (95 % interval over rounds). Planned rounds: "
        f"{rounds}."
    )
    if run.rates is None:
        return text + " The machine's rates were not measured, so there are no bounds."
    return (
        f"{text} {_reached(summary)}; the bound of a turn is what that allows with the draft "
        "model, at the draft length that suits it best with the acceptance that was measured on "
        "the round's prompts, and shares of the bound are means over turns, each of its own."
    )


def _reached(summary: Summary) -> str:
    """What the machine reached."""
    turns = [r.rates for cell in summary.cells for r in cell.records if r.rates is not None]
    if not turns and summary.run.rates is not None:
        best = summary.run.rates
        return (
            f"The machine reads {best.read / 1e9:.1f} GB/s, copies {best.copy / 1e9:.1f} GB/s and "
            f"computes {best.flops / 1e9:.0f} GFLOP/s in a matrix product at its best"
        )
    memory = _spread([max(rates.read, rates.copy) / 1e9 for rates in turns])
    products = _spread([rates.flops / 1e9 for rates in turns])
    return (
        f"Before and after each turn the machine was measured: it read or copied {memory} GB/s and "
        f"computed {products} GFLOP/s in matrix products (medians, and what nine of ten turns had)"
    )


def _spread(values: Sequence[float]) -> str:
    low, middle, high = np.percentile(values, (5, 50, 95))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def _table(
    summary: Summary, pair: PairRecord, load: Workload, cells: Sequence[CellSummary | None]
) -> str:
    heads = [f"C = {c}" for c in summary.run.concurrencies]
    lines = [
        f"**{pair.name}, prompts of {load.prompt} tokens, {load.output} new ones**",
        "",
        f"| tokens/s | {' | '.join(heads)} |",
        "| --- |" + " --- |" * len(heads),
    ]

    def row(name: str, of: Text) -> None:
        texts = [NOTHING if cell is None else of(cell) for cell in cells]
        if set(texts) != {NOTHING}:
            lines.append(f"| {name} | {' | '.join(texts)} |")

    for engine in summary.engines:
        row(label(engine), lambda cell, engine=engine: _rate(cell, engine))  # type: ignore[misc]
    row("bound", _bound)
    row("best of ours but n-gram ÷ bound", lambda cell: _share(cell.share(cell.best_bounded)))
    row("best of ours ÷ best of all peers", lambda cell: _versus(_best(cell), named=True))
    row("ours, auto ÷ ours, plain", lambda cell: _versus(cell.versus(AUTO, PLAIN)))
    row(
        "ours, plain ÷ best plain peer",
        lambda cell: _versus(cell.versus(PLAIN, cell.best(is_plain_peer)), named=True),
    )
    lines += ["", "Decoding only, tokens/s after the first token of each request:", ""]
    lines += [f"| tokens/s | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for engine in summary.engines:
        row(label(engine), lambda cell, engine=engine: _decode(cell, engine))  # type: ignore[misc]
    row("bound", lambda cell: NOTHING if cell.bound is None else f"{cell.bound.decode:.0f}")
    row(
        "best of ours but n-gram ÷ bound, the mode of the table above",
        lambda cell: _share(cell.decode_share(cell.best_bounded)),
    )
    return "\n".join(lines)


def _rate(cell: CellSummary, engine: str) -> str:
    return _estimate(cell.rate(engine))


def _estimate(found: Estimate | None) -> str:
    if found is None:
        return NOTHING
    value = _number(found.value)
    if found.low is None or found.high is None:
        return f"{value} (once)"
    return f"{value} ({_number(found.low)} to {_number(found.high)})"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _bound(cell: CellSummary) -> str:
    bound = cell.bound
    if bound is None:
        return NOTHING
    return f"{bound.total:.0f} ({bound.length} draft tokens at acceptance {bound.acceptance:.2f})"


def _share(found: Estimate | None) -> str:
    return NOTHING if found is None else str(found)


def _decode(cell: CellSummary, engine: str) -> str:
    rate = cell.decode_rate(engine)
    return NOTHING if rate is None else _number(rate)


def _best(cell: CellSummary) -> Versus | None:
    return cell.versus(cell.best_of_ours, cell.best_of_theirs)


def _versus(found: Versus | None, named: bool = False) -> str:
    if found is None:
        return NOTHING
    text = f"{found.value:.2f}"
    if found.ratio is None:
        text += " (once)"
    else:
        text += f" ({found.ratio.low:.2f} to {found.ratio.high:.2f})"
    if named:
        mode = found.ours.partition(":")[2]
        text += f": {mode} ÷ {label(found.theirs)}"
    return text


def _checks(summary: Summary) -> str:
    if not summary.checks:
        return ""
    lines = [
        "| engine | version | requests checked | the verifier's own tokens | of these with a "
        "near-tie | most cores that idle engines used meanwhile |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in summary.checks:
        share = f"{one.equal / one.judged:.1%}" if one.judged else "its ids are not known"
        lines.append(
            f"| {label(one.engine)} | {one.version or NOTHING} | {one.judged} | {share} | "
            f"{one.near_ties} | {one.idle_cores:.2f} |"
        )
    return "\n".join(lines)


def _missing(summary: Summary) -> str:
    lines = []
    for (engine, reason), places in by_reason(summary.failures).items():
        where = "; ".join(dict.fromkeys(places))
        lines.append(f"- {label(engine)} ({where}): {reason}")
    if not lines:
        return ""
    return "\n".join(["Did not take part, or not to the end:", "", *lines])
