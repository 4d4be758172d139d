"""From the options of ``pdv-bench sweep`` to a run that can begin: everything that can be known to
be wrong is said before any server starts."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.load import Lengths, Trace, Workload, WorkloadPlan, read_trace, tokenizer_of
from bench.load.sources import Work
from bench.results.records import SCHEMA_VERSION, Configuration, Load, Run
from bench.roofline.recorded import KEY, facts
from bench.statistics import MIN_BLOCKS
from bench.sweep.environment import command_line, environment
from bench.sweep.errors import PlanError
from bench.sweep.pairs import ModelPair, find_pairs, read_pairs
from bench.sweep.plan import (
    configure,
    make_candidates,
    make_loads,
    parse_objective,
    shortest_block,
)

DEFAULT_SECONDS = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked for, as in ``pdv-bench sweep --help``. Times in seconds."""

    topologies: Mapping[str, tuple[str, Mapping[str, str]]]
    concurrency: Sequence[int]
    rate: Sequence[float]
    burstiness: float
    trace: Path | None
    pairs: Path | None
    blocks: int
    seconds: float | None
    ramp: float
    budget: float
    precision: float | None
    again: bool
    slo: str
    workload: str
    prompt_tokens: Lengths
    output_tokens: Lengths
    temperature: float
    option: Mapping[str, str]
    seed: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run, its pairs, and what clients ask for by pair and load. ``notes``: what the user should
    know of it, as sentences."""

    run: Run
    pairs: list[ModelPair]
    works: dict[str, dict[str, Work]]
    notes: tuple[str, ...] = ()


def prepare_run(options: Options) -> Prepared:
    """Raises PlanError or WorkloadError, one sentence each."""
    candidates = make_candidates(options.topologies, options.option, options.again)
    loads = make_loads(options.concurrency, options.rate, options.burstiness, options.trace)
    objective = parse_objective(options.slo)
    pairs = find_pairs(read_pairs(options.pairs))
    configurations = [configure(pair, one) for pair in pairs for one in candidates]
    works = {pair.name: _works(options, pair, loads, configurations) for pair in pairs}
    traces = [w for of in works.values() for w in of.values() if isinstance(w, Trace)]
    run = Run(
        schema_version=SCHEMA_VERSION,
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        command=command_line(sys.argv),
        seed=options.seed,
        reference=candidates[0].name,
        candidates=candidates,
        pairs=[pair.record for pair in pairs],
        loads=loads,
        blocks=options.blocks,
        window=_window(options, loads, traces),
        ramp=options.ramp,
        budget=options.budget,
        precision=options.precision,
        workload=_workload_facts(works),
        objective=objective,
        environment=environment(),
        configurations=configurations,
    )
    least = 2 * len(pairs) * shortest_block(run)
    if options.budget < least:
        raise PlanError(
            f"warm-up and one block take {least:.0f} s at least, and the budget is "
            f"{options.budget:g} s; give more, or fewer loads"
        )
    return Prepared(run, pairs, works, tuple(_notes(run, traces)))


def with_roofline(prepared: Prepared) -> Run:
    """The run with the rates of the machine, measured now, and the shapes of its models."""
    run = prepared.run
    folders = {pair.name: (pair.verifier, pair.draft) for pair in prepared.pairs}
    options = run.configurations[0].options.get("model", {})
    found = facts(run.environment["machine"], options, folders)
    if found is None:
        return run
    environment = {**run.environment, KEY: msgspec.to_builtins(found)}
    return msgspec.structs.replace(run, environment=environment)


def _works(
    options: Options,
    pair: ModelPair,
    loads: Sequence[Load],
    configurations: Sequence[Configuration],
) -> dict[str, Work]:
    """What the clients of a pair ask for, by load."""
    tokenizer = tokenizer_of(str(pair.verifier))
    context = min(
        c.options["model"]["max_model_len"] for c in configurations if c.pair == pair.name
    )
    workload: Workload | None = None
    found: dict[str, Work] = {}
    for load in loads:
        if load.trace is not None:
            found[load.name] = read_trace(
                Path(load.trace), tokenizer, options.seed, options.temperature, context
            )
        else:
            workload = workload or WorkloadPlan(
                source=options.workload,
                prompts=options.prompt_tokens,
                outputs=options.output_tokens,
                temperature=options.temperature,
            ).build(tokenizer, options.seed, context)
            found[load.name] = workload
    return found


def _window(options: Options, loads: Sequence[Load], traces: Sequence[Trace]) -> float:
    """Length of the window: what is asked for, else what a trace alone needs, else the default."""
    longest = max((trace.seconds for trace in traces), default=0.0)
    if traces and longest <= options.ramp:
        raise PlanError(
            f"the trace is over after {longest:g} s, and the first {options.ramp:g} s do not "
            "count; give a smaller --ramp"
        )
    if options.seconds is not None:
        return options.seconds
    return longest - options.ramp if len(loads) == 1 and traces else DEFAULT_SECONDS


def _notes(run: Run, traces: Sequence[Trace]) -> Iterator[str]:
    longest = max((trace.seconds for trace in traces), default=0.0)
    if longest > run.ramp + run.window:
        yield (
            f"the trace goes on for {longest:g} s, and the first {run.ramp + run.window:g} s are "
            f"replayed; --seconds {longest - run.ramp:g} replays all of it"
        )
    if run.blocks < MIN_BLOCKS:
        yield f"{run.blocks} blocks are too few to compare anything; {MIN_BLOCKS} are needed"


def _workload_facts(works: Mapping[str, Mapping[str, Work]]) -> dict[str, Any]:
    """What the workload is, for the first pair, and digests of what is asked for, by pair."""
    found: dict[str, Any] = {}
    digests: dict[str, dict[str, str]] = {}
    for pair, by_load in works.items():
        digests[pair] = {}
        for work in by_load.values():
            kind = "workload" if isinstance(work, Workload) else "trace"
            if kind in digests[pair]:
                continue
            digests[pair][kind] = _digest(work)
            if isinstance(work, Workload):
                found = {**work.facts, **found}
            else:
                found.setdefault("trace_requests", len(work.asks))
                found.setdefault("trace_seconds", work.seconds)
    return {**found, "digests": digests}


def _digest(work: Work) -> str:
    """SHA-256 of all prompts, and of what a trace says besides: whether two are the same."""
    content: list[Any] = [[list(prompt) for prompt in work.prompts]]
    if isinstance(work, Trace):
        asks = [(ask.prompt, ask.max_tokens, ask.seed) for ask in work.asks]
        content += [list(work.arrivals), asks]
    else:
        content.append(list(work.own_outputs))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
