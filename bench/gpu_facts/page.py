"""The page and the JSON of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date

from bench.gpu_facts.facts import Outcome

_HEAD = """# Facts about a GPU

Written by `python -m bench.gpu_facts{options}` on {day}; do not edit. Numbers are the median, the
range, and how often it was measured. Every section was measured in a process of its own. The
same as JSON, with every single value: [{json_name}]({json_name}).
"""

_NOT_MEASURED = """
## Not measured

- Intervals on the GPU's own clock (`%globaltimer`), which needs a kernel of our own.
- Attention kernels of other packages (FlashInfer). The server's own is measured by
  `python -m bench.gpu`.
"""


def render(outcomes: Sequence[Outcome], json_name: str, quick: bool, day: date) -> str:
    """The page, in Markdown."""
    parts = [
        _HEAD.format(options=" --quick" if quick else "", day=day.isoformat(), json_name=json_name)
    ]
    for outcome in outcomes:
        lines = [f"\n## {outcome.title}\n"]
        if outcome.facts:
            lines += ["| what | found |", "| --- | --- |"]
            lines += [f"| {_cell(fact.what)} | {_cell(str(fact))} |" for fact in outcome.facts]
        if outcome.error:
            lines.append(f"\n**Failed** after {outcome.seconds:g} s: {_cell(outcome.error)}")
        parts.append("\n".join(lines) + "\n")
    parts.append(_NOT_MEASURED)
    return "".join(parts)


def as_json(outcomes: Sequence[Outcome], quick: bool, day: date) -> str:
    """Everything that was measured."""
    found = {
        "day": day.isoformat(),
        "quick": quick,
        "measurements": [asdict(outcome) for outcome in outcomes],
    }
    return json.dumps(found, ensure_ascii=False) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
