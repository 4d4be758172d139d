"""Made-up comparisons of engines whose rates are known."""

from __future__ import annotations

import math

from bench.peers.records import (
    CellRecord,
    FailureRecord,
    PairRecord,
    RatesRecord,
    RunRecord,
    Shape,
    Workload,
)
from bench.peers.summary import FIXED, Summary, summarise
from bench.roofline.bounds import expected_tokens

VERIFIER = Shape(30, 576, 9, 3, 64, 1536, 4096, 4)
DRAFT = Shape(2, 128, 2, 1, 64, 384, 4096, 4)
RATES = {
    "pdv_mp:auto": 100.0,
    FIXED: 90.0,
    "pdv_mp:plain": 50.0,
    "other:plain": 40.0,
    "other:draft": 80.0,
    "third:plain": 10.0,
}
ROUNDS = 4


def record(engine: str, concurrency: int, round: int, rate: float) -> CellRecord:
    tokens = 64 * concurrency
    # 10,000 cycles of 4 draft tokens at an acceptance of 0.75.
    accepted = round_half(10_000 * (expected_tokens(0.75, 4) - 1))
    return CellRecord(
        pair="a pair",
        workload="128+64",
        concurrency=concurrency,
        round=round,
        order=0,
        engine=engine,
        version="1.0",
        tokens=tokens,
        seconds=tokens / rate,
        prefill_seconds=0.25 * tokens / rate if round == 0 else None,
        judged=8,
        equal=8,
        near_ties=1,
        idle_cores=0.01,
        sitting=1,
        speculation=(
            {"cycles": 10_000, "drafted": 40_000, "accepted": accepted} if engine == FIXED else None
        ),
    )


def round_half(value: float) -> int:
    return math.floor(value + 0.5)


def summary(with_machine: bool = True) -> Summary:
    run = RunRecord(
        schema_version=1,
        started="2026-01-02T03:04:05+00:00",
        command=["pdv-bench", "peers"],
        environment={"machine": {"cpu": "a CPU"}},
        seed=0,
        threads=2,
        draft_tokens=4,
        engines=[*RATES, "absent:plain"],
        pairs=[PairRecord("a pair", "1", "2", VERIFIER, DRAFT)],
        workloads=[Workload(128, 64)],
        concurrencies=[1, 8],
        rounds=[ROUNDS, ROUNDS],
        rates=RatesRecord(2, 20e9, 15e9, 180e9) if with_machine else None,
    )
    cells = [
        # All engines are slower in odd rounds, by the same factor.
        record(engine, concurrency, turn, rate * concurrency**0.5 * (0.7 if turn % 2 else 1.0))
        for concurrency in (1, 8)
        for engine, rate in RATES.items()
        for turn in range(1 if engine == "third:plain" else ROUNDS)
    ]
    failures = [FailureRecord(pair="a pair", engine="absent:plain", reason="not installed")]
    return summarise(run, cells, failures)
