"""Batches and messages of a file that ``pdv-launch --trace`` wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.handoff.errors import HandoffError
from bench.handoff.gap import StageBatch
from pdv_mp.topology_rows import STAGES


@dataclass(frozen=True, slots=True)
class Traced:
    """``messages``: from the start of the encoding to the end of the decoding, in ns."""

    batches: list[StageBatch]
    messages: list[tuple[int, int]]


def read_trace(path: Path) -> Traced:
    """Raises HandoffError if the server ran so long that its oldest records were overwritten."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["otherData"]["records that were overwritten"]:
        raise HandoffError(f"{path} has lost its oldest records; measure fewer rounds")
    batches: list[StageBatch] = []
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    last: tuple[int, int] = (0, 0)
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            last = _nanoseconds(event)
            if event["name"] in STAGES:
                start = last[0] + event["args"]["batch_ns"]
                batches.append(StageBatch(event["name"], start, last[1], event["args"]["rows"]))
        elif event["ph"] == "s":
            starts[event["id"]] = last[0]
        elif event["ph"] == "f":
            ends[event["id"]] = last[1]
    return Traced(batches, [(starts[number], end) for number, end in ends.items()])


def _nanoseconds(event: dict[str, Any]) -> tuple[int, int]:
    start = round(event["ts"] * 1000)
    return start, start + round(event["dur"] * 1000)
