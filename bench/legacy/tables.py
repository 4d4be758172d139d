"""``legacy.md``: the large ratio and the honest one side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from bench.legacy.apportioning import Apportioning
from bench.legacy.counts import LegacyCell
from bench.legacy.results import BOUNDED, NOBODY, UNBOUNDED, Interval, Legacy
from bench.statistics import MIN_BLOCKS


def as_markdown(found: Legacy) -> str:
    """The page."""
    parts = [_beginning(found), cell_table(found), _ratios(found), _parts(found), _problems(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _beginning(found: Legacy) -> str:
    facts = found.facts
    return (
        "# The window of the sources\n\n"
        f"Requests arrive at random, {facts.rate:.1f} a second, in the first "
        f"{facts.arriving:g} s of a window of {facts.window:g} s; each asks for {facts.tokens} "
        f"tokens. That is {facts.overload:.1f} times what these servers can generate in the "
        f"window ({facts.capacity:,.0f} tokens/s on average). The sources counted the tokens of "
        "requests that completed before the window's end, and nothing of the others (legacy). "
        "Here every token that arrived in the window is counted as well (honest), from the same "
        f"requests. *Unbounded* admission lets {_admitted(found, UNBOUNDED)} requests at once "
        f"share the server, *bounded* admission {_admitted(found, BOUNDED)}, first come first "
        "served. Means over blocks."
    )


def _admitted(found: Legacy, admission: str) -> int:
    return next(s.admitted for s in found.facts.sides.values() if s.admission == admission)


def cell_table(found: Legacy) -> str:
    """A line for each of the four cells."""
    lines = [
        "| topology | admission | requests | completed | legacy tokens/s | honest tokens/s | "
        "overload | blocks |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for side in found.facts.sides.values():
        cells = [
            cell
            for cell in found.cells
            if (cell.topology, cell.admission) == (side.topology, side.admission) and cell.counts
        ]
        lines.append(f"| {side.topology} | {side.admission} | {_cells(cells)} | {len(cells)} |")
    return "\n".join(lines)


def _cells(cells: Sequence[LegacyCell]) -> str:
    if not cells:
        return "– | – | – | – | –"
    mean = statistics.fmean
    overloads = [cell.measured_overload for cell in cells if cell.measured_overload is not None]
    return " | ".join(
        (
            f"{mean(cell.offered_requests for cell in cells):.0f}",
            f"{mean(cell.completed for cell in cells):.1f}",
            f"{mean(cell.legacy_tokens_per_s for cell in cells):,.0f}",
            f"{mean(cell.honest_tokens_per_s for cell in cells):,.0f}",
            f"{mean(overloads):.1f}" if overloads else "–",
        )
    )


def _ratios(found: Legacy) -> str:
    if found.legacy is None or found.honest is None:
        return "No block has all four cells, so there is nothing to compare."
    facts = found.facts
    lines = [
        f"The sources' comparison, {facts.candidate} with bounded over {facts.reference} with "
        "unbounded admission, from the same runs:",
        "",
        "| metric | ratio | 95 % interval |",
        "| --- | ---: | --- |",
        f"| legacy: tokens of completed requests | {said_ratio(found.legacy)} | "
        f"{said_interval(found.legacy)} |",
        f"| honest: all tokens | {said_ratio(found.honest)} | {said_interval(found.honest)} |",
    ]
    lines += [
        "",
        "The sources' own tables have one completed request of PD and 34 of PDV at 128 at once, "
        "which is their ratio of 33.7.",
    ]
    if found.legacy.at_least:
        lines += [
            "",
            f"“At least”: where no request completed, {NOBODY:g} of one is taken to have, "
            "because nothing has no ratio.",
        ]
    return "\n".join(lines)


def said_ratio(found: Interval) -> str:
    """As text."""
    return ("at least " if found.at_least else "") + _factor(found.ratio)


def said_interval(found: Interval) -> str:
    """As text."""
    if found.low is None or found.high is None:
        return f"none: {found.blocks} of the {MIN_BLOCKS} blocks that it takes"
    return f"{_factor(found.low)} to {_factor(found.high)}"


def _factor(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def _parts(found: Legacy) -> str:
    if found.legacy_parts is None or found.honest_parts is None:
        return ""
    lines = [
        "What the ratio is due to: each factor is the mean over both orders in which admission and "
        "topology can be exchanged (Shapley value), and the two multiply to the ratio. "
        "*Interaction*: by how much exchanging both does more than each alone; it is divided "
        "evenly between them.",
        "",
        "| metric | ratio | due to admission | due to topology | interaction |",
        "| --- | ---: | ---: | ---: | ---: |",
        _part_line("legacy", found.legacy_parts),
        _part_line("honest", found.honest_parts),
    ]
    share = found.legacy_parts.admission_share
    if share is not None:
        lines += ["", f"Admission makes {share:.0%} of the logarithm of the legacy ratio."]
    return "\n".join(lines)


def _part_line(name: str, parts: Apportioning) -> str:
    values = (parts.total, parts.admission, parts.topology, parts.interaction)
    return f"| {name} | " + " | ".join(_factor(math.exp(value)) for value in values) + " |"


def _problems(found: Legacy) -> str:
    facts = found.facts
    lines = []
    if facts.first_tokens >= facts.tokens:
        lines.append(
            f"- The first request gets about {facts.first_tokens:.0f} of {facts.tokens} tokens by "
            "the window's end even where all share the server, so some complete there."
        )
    for cell in found.cells:
        where = f"{cell.topology}, {cell.admission}, block {cell.block}"
        if cell.failed or cell.invalid:
            lines.append(f"- {where} does not count: {cell.failed or cell.invalid}.")
        if cell.refused or cell.errors:
            lines.append(f"- {where}: {cell.refused} requests refused, {cell.errors} failed.")
    return "What to know of it:\n\n" + "\n".join(lines) if lines else ""
