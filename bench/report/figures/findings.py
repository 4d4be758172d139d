"""What a picture's title says. Every word of it follows from the analysis.

Whoever is faster is named first, so that a finding does not depend on which candidate is the
reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.report.figures.view import Value, View
from bench.report.summaries import CellSummary, Estimate
from bench.statistics import MIN_BLOCKS


def span(chosen: Sequence[int], known: Sequence[int]) -> str:
    """Some of the concurrencies that are known: ``every concurrency``, ``C = 1 to 8 and 32``."""
    if set(chosen) == set(known):
        return "every concurrency" if len(set(known)) > 1 else f"C = {known[0]}"
    runs: list[list[int]] = []
    ordered = sorted(set(known))
    for value in sorted(set(chosen)):
        if runs and ordered.index(value) == ordered.index(runs[-1][-1]) + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    parts: list[str] = []
    for run in runs:
        if len(run) > 2:
            parts.append(f"{run[0]} to {run[-1]}")
        else:
            parts.extend(map(str, run))
    return f"C = {listed(parts)}"


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def by_pair(view: View, said: Callable[[str], str]) -> str:
    """What is said of each pair as one sentence, once if it is the same of all."""
    texts = {pair: said(pair) for pair in view.pairs}
    if len(set(texts.values())) == 1:
        text = next(iter(texts.values()))
        return text[:1].upper() + text[1:]
    return "W" + "; ".join(f"with {pair}, {text}" for pair, text in texts.items())[1:]


def leader(view: View, pair: str, load: str) -> str | None:
    """The candidate that is shown to be ahead of all others that did not fail, if there is one."""
    for candidate in view.candidates:
        found = [
            comparison.verdict
            for comparison in view.analysis.comparisons
            if (comparison.pair, comparison.load, comparison.candidate) == (pair, load, candidate)
            and not (
                comparison.verdict == "failed" and is_lost(view, pair, comparison.reference, load)
            )
        ]
        if found and all(verdict == "ahead" for verdict in found):
            return candidate
    return None


def is_lost(view: View, pair: str, candidate: str, load: str) -> bool:
    """Whether a cell has no block that counts though it was tried."""
    cell = view.analysis.cell(pair, candidate, load)
    return not cell.blocks and bool(cell.problems)


def losses(view: View, pair: str) -> str:
    """Who failed where, as what ends a title."""
    parts = []
    for candidate in view.candidates:
        lost = [
            load.concurrency or 0
            for load in view.closed
            if is_lost(view, pair, candidate, load.name)
        ]
        if lost:
            parts.append(f"{candidate} failed at {span(lost, view.concurrencies)}")
    return "".join(f", {part}" for part in parts)


def lead_over_next(view: View, pair: str, load: str, candidate: str) -> float:
    """How many times the next one's throughput a leader has."""
    return min(
        comparison.ratio.estimate
        for comparison in view.analysis.comparisons
        if (comparison.pair, comparison.load, comparison.candidate) == (pair, load, candidate)
        and comparison.ratio is not None
    )


def throughput(view: View) -> str:
    """Who has the most tokens/s where, by the verdicts."""
    if len(view.candidates) < 2:
        return by_pair(view, lambda pair: tokens_of_one(view, pair))
    text = by_pair(view, lambda pair: _leaders(view, pair))
    leads = [
        lead_over_next(view, pair, load.name, name)
        for pair in view.pairs
        for load in view.closed
        if (name := leader(view, pair, load.name)) is not None
    ]
    return f"{text}; the leader has {times(leads)} the next one's" if leads else text


def _leaders(view: View, pair: str) -> str:
    won: dict[str | None, list[int]] = {}
    for load in view.closed:
        won.setdefault(leader(view, pair, load.name), []).append(load.concurrency or 0)
    known = view.concurrencies
    undecided = won.pop(None, [])
    lost = losses(view, pair)
    if not won:
        verdicts = {c.verdict for c in view.analysis.comparisons if c.pair == pair}
        if verdicts <= {"too few blocks", "failed"}:
            return f"too few blocks to say who has the most tokens/s{lost}"
        return f"nobody is shown to have more tokens/s than all others{lost}"
    leading = [f"{name} at {span(where, known)}" for name, where in won.items()]
    text = f"most tokens/s: {', '.join(leading)}"
    if undecided:
        text += f", no leader shown at {span(undecided, known)}"
    return text + lost


def times(ratios: Sequence[float]) -> str:
    """``1.2 times`` or ``1.2 to 1.4 times``."""
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return f"{low} times" if low == high else f"{low} to {high} times"


def tokens_of_one(view: View, pair: str) -> str:
    """Where the only candidate has the most tokens/s."""
    found = most(view, pair, lambda cell: cell.throughput)
    if found is None:
        return "nothing could be counted"
    concurrency, estimate = found
    return f"the most tokens/s, {estimate.value:.0f}, come at C = {concurrency}"


def most(view: View, pair: str, value: Value) -> tuple[int, Estimate] | None:
    """The largest value of a pair, and where it is."""
    found = [
        (concurrency, estimate)
        for candidate in view.candidates
        for concurrency, cell in view.cells(pair, candidate)
        if (estimate := value(cell)) is not None
    ]
    return max(found, key=lambda place: place[1].value, default=None)


def apart_below(view: View, pair: str, value: Value) -> dict[str, list[int]]:
    """Where a candidate's interval lies wholly below those of all others, by candidate, of cells
    with enough blocks to compare."""
    found: dict[str, list[int]] = {}
    for load in view.closed:
        cells = {name: view.analysis.cell(pair, name, load.name) for name in view.candidates}
        here = {
            name: estimate
            for name, cell in cells.items()
            if cell.blocks >= MIN_BLOCKS and (estimate := value(cell)) is not None
        }
        lowest = _wholly_below(here)
        if lowest is not None:
            found.setdefault(lowest, []).append(load.concurrency or 0)
    return found


def _wholly_below(here: Mapping[str, Estimate]) -> str | None:
    for name, estimate in here.items():
        others = [other for key, other in here.items() if key != name]
        if others and all(
            estimate.high is not None and other.low is not None and estimate.high < other.low
            for other in others
        ):
            return name
    return None


def latency(view: View, pair: str) -> str:
    """Who answers soonest on average where, by intervals that do not touch."""
    if len(view.candidates) < 2:
        found = most(view, pair, lambda cell: cell.e2e.mean)
        if found is None:
            return "no request has ended"
        return f"requests take up to {found[1].value:.0f} ms on average, at C = {found[0]}"
    won = apart_below(view, pair, lambda cell: cell.e2e.mean)
    known = view.concurrencies
    if not won:
        return "nobody's requests are shown to end sooner on average than all others'"
    parts = [f"{name}'s at {span(where, known)}" for name, where in won.items()]
    text = f"requests end soonest on average: {', '.join(parts)}"
    covered = sum(len(where) for where in won.values())
    return text + (", elsewhere nobody's is shown to" if covered < len(known) else "")


def where(view: View, cell: CellSummary) -> str:
    """A cell by its names."""
    pair = f" with {cell.pair}" if len(view.pairs) > 1 else ""
    return f"{cell.candidate} at C = {cell.shape.concurrency}{pair}"
