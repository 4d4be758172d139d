"""The table and the JSON of a run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date

from bench.gpu.goals import DEVICE, judge
from bench.gpu_facts.facts import Fact, Outcome

BEGIN, END = "<!-- bench.gpu: begin -->", "<!-- bench.gpu: end -->"
"""Between these lines of the page a run writes its results."""


def rates(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Decoding rates by cell."""
    facts = [fact for outcome in outcomes for fact in outcome.facts]
    return {
        fact.what: fact.values for fact in facts if fact.unit == "tokens/s" and ":" not in fact.what
    }


def render(outcomes: Sequence[Outcome], quick: bool, day: date) -> str:
    """The section of the page, in Markdown."""
    parts = [
        f"Measured on {day.isoformat()} by `python -m bench.gpu{' --quick' if quick else ''}`: "
        "tokens/s of decoding, the engine of `unified` in one process without its sockets, greedy, "
        "contexts around 512, stand-ins of the shapes (weights of the shipped verifier; agreement "
        "by noise on the draft). Medians, with range and number of rounds.\n",
        f"\n| goal (on one {DEVICE}) | at least | found | |\n| --- | --- | --- | --- |",
    ]
    for verdict in judge(rates(outcomes)):
        least = "–" if verdict.least is None else f"{verdict.least:,.0f}"
        found = "–" if verdict.found is None else f"{verdict.found:,.0f}"
        parts.append(f"| {verdict.goal.text} | {least} | {found} | {verdict.word} |")
    for outcome in outcomes:
        parts.append(f"\n### {outcome.title}\n")
        bounds = {
            fact.what.removesuffix(": bound"): fact.values[0]
            for fact in outcome.facts
            if fact.what.endswith(": bound")
        }
        shown = [fact for fact in outcome.facts if not fact.what.endswith(": bound")]
        if shown:
            parts.append("| what | found | of the bound |\n| --- | --- | --- |")
            parts += [f"| {fact.what} | {fact} | {_share(fact, bounds)} |" for fact in shown]
        if outcome.error:
            parts.append(
                f"\n**Failed** after {outcome.seconds:g} s: {' '.join(outcome.error.split())}"
            )
    return "\n".join(parts) + "\n"


def _share(fact: Fact, bounds: dict[str, float]) -> str:
    if fact.what not in bounds:
        return ""
    return f"{statistics.median(fact.values) / bounds[fact.what]:.0%}"


def as_json(outcomes: Sequence[Outcome], quick: bool, day: date) -> str:
    """Everything that was measured, and the goals."""
    goals = [
        {"goal": v.goal.text, "least": v.least, "found": v.found, "verdict": v.word}
        for v in judge(rates(outcomes))
    ]
    found = {
        "day": day.isoformat(),
        "quick": quick,
        "goals": goals,
        "steps": [asdict(outcome) for outcome in outcomes],
    }
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"


def put_section(page: str, section: str) -> str:
    """The page with the section in its place. Raises ValueError for a page without one."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN} and {END}")
    return f"{before}{begin}\n{section}{end}{after}"
