"""Clients that put a server under load, and the records of what they saw.

    tokenizer = tokenizer_of(pair.model)                    # None: the shipped pair's
    workload = WorkloadPlan(outputs=parse_lengths("64")).build(tokenizer, seed=0)
    with Loop(llm.ipc, llm.pids, is_running) as loop:
        window = loop.run(workload, load, block=1, ramp=1.0, seconds=2.5, timelines=False)

``work`` is a :class:`Workload` under a closed or open load and a :class:`Trace`, read by
:func:`read_trace`, under one of kind ``trace``. All that users give and that cannot be read raises
:class:`WorkloadError`, one sentence; a server that cannot serve raises :class:`LoadError`.
"""

from __future__ import annotations

from bench.load.arrivals import arrival_times
from bench.load.errors import LoadError, WorkloadError
from bench.load.held_out import Variety, tokenizer_of
from bench.load.lengths import Lengths, parse_lengths
from bench.load.loop import Loop
from bench.load.trace import Trace, read_trace
from bench.load.window import Window
from bench.load.workload_plan import WorkloadPlan
from bench.load.workloads import Ask, Workload

__all__ = [
    "Ask",
    "Lengths",
    "LoadError",
    "Loop",
    "Trace",
    "Variety",
    "Window",
    "Workload",
    "WorkloadError",
    "WorkloadPlan",
    "arrival_times",
    "parse_lengths",
    "read_trace",
    "tokenizer_of",
]
