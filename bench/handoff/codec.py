"""What encoding and decoding a message between workers takes, by itself: a batch of 128 requests.

*Warm*: again and again; the best of many runs, which other processes disturb least. *Cold*: each
time after a pass over more memory than the caches hold; the median. A worker's step reads the
weights, so what a server needs lies between the two.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.handoff.tables import Rows, markdown
from pdv_mp.speculation.sampling import SamplingColumns
from pdv_mp.stages.messages import DraftOrder, Prefilled, PrefillOrder, Proposal
from pdv_mp.wire import stages
from pdv_mp.wire.frames import BatchStamps, Stamps

ENTRIES = 128
PROMPT_TOKENS, DRAFTED, NEW_TOKENS = 128, 4, 4

RUNS, COLD_RUNS = 2000, 40
FLUSHED_BYTES = 1 << 26

_BATCH = BatchStamps(1, 2, 3)


def messages() -> dict[str, Any]:
    """By edge, an order or a result for 128 requests."""
    slots = np.arange(ENTRIES, dtype=np.int64)
    numbers = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        return numbers.integers(0, 4000, count).astype(np.int32)

    return {
        "verify>prefill": stages.PrefillWork(
            order=PrefillOrder(
                slots=slots,
                starts=slots * 0,
                lengths=slots * 0 + PROMPT_TOKENS,
                ids=ids(ENTRIES * PROMPT_TOKENS),
                fills_draft=slots >= 0,
                logprobs=slots * 0 - 1,
                prompt_logprobs=slots * 0 - 1,
                sampling=_sampling(ENTRIES),
            )
        ),
        "prefill>verify": stages.PrefillResult(
            result=Prefilled(slots, slots, slots, slots * 0 + PROMPT_TOKENS),
            batch=_BATCH,
            orders=np.zeros((ENTRIES, 4), np.int64),
            busy_ns=slots * 0,
        ),
        "verify>draft": stages.DraftWork(
            order=DraftOrder(
                cycle=1,
                slots=slots,
                base=slots + PROMPT_TOKENS,
                lengths=slots * 0 + DRAFTED,
                starts=slots + PROMPT_TOKENS - NEW_TOKENS,
                ids=ids(ENTRIES * NEW_TOKENS),
                fresh=slots[:0],
                sampling=_sampling(0),
            )
        ),
        "draft>verify": stages.DraftResult(
            cycle=1,
            proposal=Proposal(
                slots,
                slots + PROMPT_TOKENS,
                slots * 0 + DRAFTED,
                numbers.integers(0, 4000, (ENTRIES, DRAFTED)),
            ),
            batch=_BATCH,
            order=Stamps(1, 2, 3, 4),
        ),
    }


def _sampling(entries: int) -> SamplingColumns:
    zeros, ones = np.zeros(entries), np.ones(entries)
    seeds = np.arange(entries, dtype=np.int64)
    return SamplingColumns(zeros.astype(np.float32), seeds * 0, ones, zeros, seeds)


def codec_rows() -> Rows:
    """By edge: bytes, and the times in µs."""
    memory = np.ones(FLUSHED_BYTES // 8)
    rows = []
    for edge, message in messages().items():
        frame = bytes(stages.encode(message, 0))
        row: dict[str, Any] = {"edge": edge, "entries": ENTRIES, "bytes": len(frame)}
        for name, call in (
            ("encode", lambda m=message: stages.encode(m, 0)),
            ("decode", lambda f=frame: stages.decode(f, 0)),
        ):
            row[f"{name}_warm_us"] = min(_time_us(call) for _ in range(RUNS))
            cold = []
            for _ in range(COLD_RUNS):
                memory.sum()
                cold.append(_time_us(call))
            row[f"{name}_cold_us"] = statistics.median(cold)
        rows.append(row)
    return rows


def _time_us(call: Callable[[], object]) -> float:
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1000


def codec_table(rows: Rows) -> str:
    """µs, warm and cold."""
    columns = [f"{name}_{how}_us" for name in ("encode", "decode") for how in ("warm", "cold")]
    head = ("edge", "entries", "bytes", "encode: warm", "cold", "decode: warm", "cold")
    return markdown(
        head,
        (
            (
                *(row["edge"], row["entries"], row["bytes"]),
                *(f"{row[column]:.1f}" for column in columns),
            )
            for row in rows
        ),
    )
