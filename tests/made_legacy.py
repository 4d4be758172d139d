"""Made-up legacy windows: raw records of servers that share their capacity evenly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from bench.legacy.counts import Side
from bench.legacy.measuring import LOAD
from bench.legacy.results import BOUNDED, UNBOUNDED, Facts
from bench.results.records import (
    SCHEMA_VERSION,
    Candidate,
    CellRecord,
    Counts,
    Load,
    Objective,
    Pair,
    RequestRecord,
    Run,
)
from bench.results.store import ResultsFolder

WINDOW, SLOTS, FEW, TOKENS, REQUESTS, ALONE = 8.0, 128, 14, 344, 192, 500.0
CAPACITY = 1500.0
STEP = 0.01


def made_facts(
    pair: str = "shipped", reference: str = "pd", candidate: str = "pdv", overload: float = 5.5
) -> Facts:
    sides = {
        f"{topology}, {admission}": Side(
            topology=topology,
            admission=admission,
            admitted=SLOTS if admission == UNBOUNDED else FEW,
        )
        for topology in (reference, candidate)
        for admission in (UNBOUNDED, BOUNDED)
    }
    return Facts(
        pair=pair,
        reference=reference,
        candidate=candidate,
        sides=sides,
        window=WINDOW,
        arriving=WINDOW / 2,
        rate=REQUESTS / (WINDOW / 2),
        tokens=TOKENS,
        prompt_tokens=32,
        overload=overload,
        capacity=CAPACITY,
        capacities=dict.fromkeys(sides, CAPACITY),
        alone=ALONE,
        first_tokens=210.0,
        seed=0,
    )


def served(admitted: int, capacity: float) -> list[RequestRecord]:
    """Requests that arrive evenly in the first half and are served first come first served, so many
    at once, all with the same share."""
    arrivals = [WINDOW / 2 * number / REQUESTS for number in range(REQUESTS)]
    got = [0.0] * REQUESTS
    events: list[list[tuple[int, int]]] = [[] for _ in range(REQUESTS)]
    for step in range(1, round(WINDOW / STEP)):
        now = step * STEP
        there = [n for n in range(REQUESTS) if arrivals[n] < now and got[n] < TOKENS][:admitted]
        share = min(ALONE, capacity / max(1, len(there))) * STEP
        for number in there:
            before, got[number] = int(got[number]), min(TOKENS, got[number] + share)
            if int(got[number]) > before:
                events[number].append((round(now * 1e9), int(got[number]) - before))
    return [_record(number, arrivals[number], events[number]) for number in range(REQUESTS)]


def _record(number: int, arrival: float, events: list[tuple[int, int]]) -> RequestRecord:
    total = sum(count for _, count in events)
    whole = total == TOKENS
    return RequestRecord(
        client=0,
        prompt=number,
        prompt_tokens=32,
        max_tokens=TOKENS,
        seed=number,
        arrival_ns=round(arrival * 1e9),
        sent_ns=round(arrival * 1e9),
        ended_ns=events[-1][0] if whole else round(WINDOW * 1e9) + 5_000_000,
        events=events,
        ids=[1] * total,
        drafted=[0] * total,
        finish="length" if whole else "abort",
        cut_off=not whole,
    )


def write_legacy(
    folder: Path,
    *,
    blocks: int = 2,
    facts: Facts | None = None,
    capacities: Mapping[str, float] | None = None,
    failed: tuple[str, int] | None = None,
    invalid: tuple[str, int] | None = None,
) -> Facts:
    """Raw records in ``folder``/legacy. ``capacities``: tokens/s by topology. ``failed``,
    ``invalid``: a candidate and block that failed, or does not count."""
    facts = facts or made_facts()
    raw = ResultsFolder(folder / "legacy")
    raw.begin(
        Run(
            schema_version=SCHEMA_VERSION,
            started="2026-01-01T00:00:00+00:00",
            command=["pdv-bench", "legacy"],
            seed=0,
            reference=next(iter(facts.sides)),
            candidates=[Candidate(name=n, topology=s.topology) for n, s in facts.sides.items()],
            pairs=[Pair(name=facts.pair)],
            loads=[Load(name=LOAD, kind="trace", trace="made up")],
            blocks=blocks,
            window=facts.window,
            ramp=0.0,
            budget=0.0,
            precision=None,
            workload={"legacy": msgspec.to_builtins(facts)},
            objective=Objective(),
            environment={},
        )
    )
    made = {
        name: served(side.admitted, (capacities or {}).get(side.topology, CAPACITY))
        for name, side in facts.sides.items()
    }
    for block in range(1, blocks + 1):
        for order, name in enumerate(facts.sides):
            lost = failed == (name, block)
            requests = [] if lost else made[name]
            cut_off = sum(request.cut_off for request in requests)
            cell = CellRecord(
                schema_version=SCHEMA_VERSION,
                id=f"b{block:03}-o{order}",
                pair=facts.pair,
                candidate=name,
                load=LOAD,
                block=block,
                order=order,
                followed=False,
                started="2026-01-01T00:00:00+00:00",
                window_ns=round(facts.window * 1e9),
                failed="the server has ended" if lost else None,
                invalid="the clients were late" if invalid == (name, block) else None,
                counts=Counts(
                    offered=len(requests), completed=len(requests) - cut_off, cut_off=cut_off
                ),
            )
            raw.add(cell, requests)
    return facts
