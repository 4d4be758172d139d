"""What the laboratory asks, as lists of trials, and what the law expects of each."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from bench.emulation.law import (
    Arrangement,
    HostCosts,
    Work,
    best_length,
    expected_tokens,
    fit_line,
    predict,
)
from bench.emulation.records import Trial
from bench.emulation.trials import Plan, Setup
from pdv_mp.emulation.cost_table import CostTable, StepCosts, read_cost_table
from pdv_mp.emulation.device_name import table_path

K = 4
"""Draft tokens per cycle, as the source documents' engine had."""

BASE = "h200-llama-2-7b"
"""The table whose steps are scaled for the map."""

PAIRS = ("h200-tinyllama", "h200-llama-2-7b", "h200-codellama-34b")
TOPOLOGIES = ("unified", "pd", "pdv")
VALIDATED = (*TOPOLOGIES, "baseline")
"""Those whose emulation is compared with real servers; the law says nothing of the last one."""

DELAYED_STEP_MS = 3.0
CYCLES = 40
"""A window has so many cycles at least, by the law."""

_OF_REAL_DEVICES = ("device", "threads", "dtype", "compile")
"""Options that say how a model is computed, and nothing to an emulated one."""

SPLIT = "pdv, draft device"
TWINS = "unified, two replicas"

TWO_DEVICES = """
tokenizers: 1
workers:
  - {name: prefill, stages: [prefill]}
  - {name: draft, stages: [draft], device: "emulated:#1"}
  - {name: verify, stages: [verify]}
"""
REPLICAS = """
replicas: 2
workers:
  - {name: worker, stages: [verify, draft, prefill], device: "emulated:#replica"}
"""


@dataclass(frozen=True, slots=True)
class Scope:
    """How much is measured: ``concurrencies``, ``steps`` in ms and ``delays`` in µs of the map and
    the sweep of delays; the host's costs, the map and the validation have ``blocks`` windows of
    each place, the other studies one. A window has ``seconds`` at least and ten times as many at
    most."""

    concurrencies: tuple[int, ...]
    steps: tuple[float, ...]
    delays: tuple[int, ...]
    blocks: int
    seconds: float
    work: Work


Group = list[Plan]
"""Trials of servers that run at the same time."""

Predictions = dict[str, float]


def scaled(table: CostTable, step_ms: float, work: Work) -> CostTable:
    """The table with all steps scaled so that the verifier's, for one row, takes so long."""
    factor = 1000 * step_ms / table.steps["verify"].at(1, 1, work.context)
    return dataclasses.replace(
        table,
        name=f"{table.name} at {step_ms:g} ms",
        launch_us=0.0,
        synchronize_us=0.0,
        time_slice_us=0.0,
        steps={name: costs.scaled(factor) for name, costs in table.steps.items()},
    )


def instant(table: CostTable) -> CostTable:
    """The table with steps of a microsecond: what is left is the host's part."""
    step = StepCosts((1,), (1,), (0,), (((1.0,),),))
    return dataclasses.replace(
        table,
        name="instant",
        launch_us=0.0,
        synchronize_us=0.0,
        time_slice_us=0.0,
        steps=dict.fromkeys(table.steps, step),
    )


def host_study(scope: Scope) -> Iterator[Group]:
    """What a cycle takes besides its steps, in each topology."""
    table = instant(read_cost_table(table_path(BASE)))
    setups = [Setup(topology, Arrangement(topology), K, table) for topology in TOPOLOGIES]
    yield [
        _plan("host", setup, concurrency, scope.seconds, block)
        for block, concurrency, setup in _in_turn(setups, scope.concurrencies, range(scope.blocks))
    ]


Cycles = dict[str, dict[int, dict[tuple[int, int], float]]]
"""By topology, concurrency and turn."""


def host_cycles(trials: Sequence[Trial], acceptance: float) -> Cycles:
    """What a cycle took besides its steps in the host study, µs."""
    cycles: Cycles = {}
    for trial in trials:
        if trial.study == "host" and trial.rate:
            tokens = trial.concurrency * expected_tokens(acceptance, trial.k)
            took = 1e6 * tokens / trial.rate - (trial.k + 1)
            cycles.setdefault(trial.setup, {}).setdefault(trial.concurrency, {})[trial.turn] = took
    return cycles


def host_costs(trials: Sequence[Trial], acceptance: float) -> HostCosts | None:
    """What the host study says of s and h, by the medians over its blocks; None before it has been
    made."""
    cycles = host_cycles(trials, acceptance)
    alone, split = cycles.get("unified", {}), cycles.get("pdv", {})
    hops = {
        clients: statistics.median((blocks[b] - alone[clients][b]) / 2 for b in shared)
        for clients, blocks in split.items()
        if (shared := blocks.keys() & alone.get(clients, {}).keys())
    }
    if not hops:
        return None
    usual = {clients: statistics.median(blocks.values()) for clients, blocks in alone.items()}
    s0, s1 = fit_line(list(usual), list(usual.values()), list(usual.values()))
    # A small difference is as uncertain as what it is the difference of.
    h0, h1 = fit_line(list(hops), list(hops.values()), [usual[clients] for clients in hops])
    return HostCosts(s0, s1, h0, h1)


def valley_study(scope: Scope, host: HostCosts) -> tuple[list[Group], Predictions]:
    """Every topology over compute per step and concurrency. The servers of a step length run at
    the same time and are asked in turn, in blocks."""
    base, groups, predictions = read_cost_table(table_path(BASE)), [], Predictions()
    for step_ms in scope.steps:
        table = scaled(base, step_ms, scope.work)
        setups = [Setup(topology, Arrangement(topology), K, table) for topology in TOPOLOGIES]
        groups.append(
            _predicted(
                "valley", setups, scope, host, predictions, blocks=scope.blocks, step_ms=step_ms
            )
        )
    return groups, predictions


def delay_study(scope: Scope, host: HostCosts) -> tuple[list[Group], Predictions]:
    """pdv with messages of the draft's edges that arrive later."""
    table = scaled(read_cost_table(table_path(BASE)), DELAYED_STEP_MS, scope.work)
    groups, predictions = [], Predictions()
    for delay in scope.delays:
        where = Arrangement("pdv", extra_us=delay)
        setup = Setup(f"pdv+{delay}µs", where, K, table)
        groups.append(
            _predicted(
                "delay", [setup], scope, host, predictions, step_ms=DELAYED_STEP_MS, delay_us=delay
            )
        )
    return groups, predictions


def device_study(scope: Scope, host: HostCosts) -> tuple[list[Group], Predictions]:
    """One device, a draft device, and two replicas, for the pairs of the source documents; each
    with the draft length that the law thinks best for it."""
    groups, predictions = [], Predictions()
    for name in PAIRS:
        table = read_cost_table(table_path(name))
        for setup in device_setups(table):
            chosen: dict[int, list[int]] = {}
            for concurrency in scope.concurrencies:
                if concurrency < 2 * setup.where.replicas and setup.where.replicas > 1:
                    continue
                k = best_length(table, host, setup.where, concurrency, scope.work)[0]
                if setup.where.own_draft_device:
                    k = max(k, 1)
                chosen.setdefault(k, []).append(concurrency)
            for k, concurrencies in chosen.items():
                part = dataclasses.replace(scope, concurrencies=tuple(concurrencies))
                with_k = dataclasses.replace(setup, k=k)
                groups.append(_predicted("devices", [with_k], part, host, predictions))
    return groups, predictions


def device_setups(table: CostTable) -> list[Setup]:
    """One device or two, with nothing else changed."""
    return [
        Setup("unified, one device", Arrangement("unified"), K, table),
        Setup("pdv, one device", Arrangement("pdv"), K, table),
        Setup(
            f"{SPLIT}, two groups",
            Arrangement("pdv", 2, own_draft_device=True),
            K,
            table,
            TWO_DEVICES,
        ),
        Setup(
            f"{SPLIT}, draft-ahead",
            Arrangement("pdv", own_draft_device=True, ahead=True),
            K,
            table,
            TWO_DEVICES,
            options=(("draft_ahead", True),),
        ),
        Setup(TWINS, Arrangement("unified", replicas=2), K, table, REPLICAS),
    ]


def validation_study(
    scope: Scope, table: CostTable, block: int, given: Mapping[str, Any] | None = None
) -> list[Group]:
    """One block of it: real servers on a CPU beside emulated ones with its ``table``; both run at
    the same time and are asked in turn. Where the table's steps take turns those of real workers
    do, too. ``given``: options of both, those with which the table was calibrated."""
    groups = []
    for topology in VALIDATED:
        alone = topology == "unified" or table.overlap
        exclusive = () if alone else (("exclusive_device", True),)
        most = (("max_num_seqs", table.steps["verify"].sequences[-1]),)
        real = Setup(
            topology,
            Arrangement(topology),
            K,
            None,
            options=(*most, ("device", "cpu"), *exclusive, *(given or {}).items()),
        )
        shared = [item for item in (given or {}).items() if item[0] not in _OF_REAL_DEVICES]
        emulated = Setup(topology, Arrangement(topology), K, table, options=(*most, *shared))
        served = [c for c in scope.concurrencies if c <= table.steps["verify"].sequences[-1]]
        groups.append(
            [
                _plan("validation", setup, concurrency, scope.seconds, block)
                for _, concurrency, setup in _in_turn([emulated, real], served, [block])
            ]
        )
    return groups


def _in_turn(
    setups: Sequence[Setup], concurrencies: Sequence[int], blocks: Iterable[int]
) -> Iterator[tuple[int, int, Setup]]:
    """Block by block, every setup at each concurrency, one right after the other. Another one is
    the first in the next block, and at the next concurrency."""
    for block in blocks:
        for number, concurrency in enumerate(concurrencies):
            first = (block + number) % len(setups)
            for setup in (*setups[first:], *setups[:first]):
                yield block, concurrency, setup


def _predicted(
    study: str,
    setups: Sequence[Setup],
    scope: Scope,
    host: HostCosts,
    predictions: Predictions,
    *,
    blocks: int = 1,
    step_ms: float | None = None,
    delay_us: float = 0.0,
) -> Group:
    """The trials of servers at all concurrencies; what is expected of them is noted."""
    group = []
    for block, concurrency, setup in _in_turn(setups, scope.concurrencies, range(blocks)):
        if setup.table is None:
            raise ValueError("the law needs a cost table")
        found = predict(setup.table, host, setup.where, concurrency, setup.k, scope.work)
        seconds = max(scope.seconds, CYCLES * found.cycle_us / 1e6)
        plan = _plan(study, setup, concurrency, min(seconds, 10 * scope.seconds), block)
        trial = msgspec.structs.replace(plan.trial, step_ms=step_ms, delay_us=delay_us)
        predictions[trial.id] = found.rate
        group.append(Plan(trial, setup, plan.seconds))
    return group


def _plan(study: str, setup: Setup, concurrency: int, seconds: float, block: int = 0) -> Plan:
    kind = "measured" if setup.table is None else "emulated"
    table = "cpu" if setup.table is None else setup.table.name
    trial = Trial(
        id=f"{study}/{kind}/{table}/{setup.name}/k{setup.k}/c{concurrency}/b{block}",
        study=study,
        kind="measured" if setup.table is None else "emulated",
        setup=setup.name,
        table=table,
        concurrency=concurrency,
        k=setup.k,
        block=block,
    )
    return Plan(trial, setup, seconds)
