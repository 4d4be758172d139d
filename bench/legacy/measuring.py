"""Measures the legacy window: four servers, two topologies with two admissions each."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from bench.legacy.overload import Overload, make_overload
from bench.legacy.plan import Plan, asked, candidates
from bench.legacy.results import Facts
from bench.load import Ask, LoadError, Loop, Trace, Workload, arrival_times
from bench.load.lengths import fixed
from bench.load.window import Window
from bench.load.workloads import Prompts, drawn
from bench.results.records import (
    SCHEMA_VERSION,
    CellRecord,
    Load,
    Objective,
    RequestRecord,
    Run,
)
from bench.results.store import ResultsFolder
from bench.servers import Server
from pdv_mp.client.client import Client, ServerError, ServerUnreachable
from pdv_mp.client.llm import LaunchError

LOAD = "the sources' window"
ARRIVALS = "arrivals of the sources' window"

LATE_SHARE = 0.02
"""Of the window: requests that are sent later than this make a cell invalid. No latency is measured
here, so what matters is that arrivals are where they should be in the window."""


class Measurement:
    """The servers of a plan, all running, one measured at a time; a context manager.

    Raises LaunchError on entry if one does not start.
    """

    def __init__(self, plan: Plan, prompts: Prompts) -> None:
        self._plan = plan
        self._prompts = prompts
        self._candidates = candidates(plan)
        self._servers: dict[str, Server] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Measurement:
        with ExitStack() as stack:
            for name, (candidate, _) in self._candidates.items():
                options = {**self._plan.models, **candidate.options}
                server = self._servers[name] = Server(candidate.topology, options)
                stack.callback(server.close)
                server.ensure()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def calibrate(self) -> tuple[Overload, dict[str, float], float]:
        """The load, the tokens/s of each server with all its places taken, and of one request
        alone. Raises LoadError, OverloadError."""
        plan = self._plan
        room = self._room()
        workload = Workload(self._prompts, fixed(room), plan.seed)
        capacities = {
            name: self._rate(name, workload, side.admitted)
            for name, (_, side) in self._candidates.items()
        }
        alone = self._rate(next(iter(self._servers)), workload, 1)
        load = make_overload(
            window=plan.window,
            slots=plan.slots,
            capacities=capacities.values(),
            alone=alone,
            longest=room,
            overload=plan.overload,
        )
        return load, capacities, alone

    def _room(self) -> int:
        """Tokens that an answer may have."""
        longest = []
        for server in self._servers.values():
            with Client(server.ensure().ipc) as client:
                longest.append(int(client.hello()["max_model_len"]))
        room = min(longest) - self._plan.prompt_tokens
        if room < 2:
            raise LoadError(
                f"prompts of {self._plan.prompt_tokens} tokens leave no room for an answer in the "
                f"{min(longest)} that the server takes"
            )
        return room

    def _rate(self, name: str, workload: Workload, clients: int) -> float:
        server = self._servers[name]
        server.restarts_when_idle()
        llm = server.ensure()
        load = Load(name=f"calibration, {clients}", kind="closed", concurrency=clients)
        length = self._plan.calibration
        with Loop(llm.ipc, llm.pids, server.is_running) as loop:
            window = loop.run(workload, load, block=0, ramp=length / 2, seconds=length)
        if not window.tokens:
            raise LoadError(f"{name}: no token arrived in a calibration of {length:g} s")
        return window.tokens / window.seconds

    def facts(self, load: Overload, capacities: dict[str, float], alone: float) -> Facts:
        """What ``run.json`` keeps of the plan and of the calibration."""
        plan = self._plan
        return Facts(
            pair=plan.pair.name,
            reference=plan.reference,
            candidate=plan.candidate,
            sides={name: side for name, (_, side) in self._candidates.items()},
            window=load.window,
            arriving=load.arriving,
            rate=load.rate,
            tokens=load.tokens,
            prompt_tokens=plan.prompt_tokens,
            overload=load.overload,
            capacity=load.capacity,
            capacities=capacities,
            alone=alone,
            first_tokens=load.first_tokens,
            seed=plan.seed,
        )

    def run_record(self, facts: Facts, command: Sequence[str], environment: dict[str, Any]) -> Run:
        """``run.json``."""
        return Run(
            schema_version=SCHEMA_VERSION,
            started=_now(),
            command=list(command),
            seed=self._plan.seed,
            reference=next(iter(self._candidates)),
            candidates=[candidate for candidate, _ in self._candidates.values()],
            pairs=[self._plan.pair],
            loads=[Load(name=LOAD, kind="trace", trace=_said_arrivals(facts))],
            blocks=self._plan.blocks,
            window=facts.window,
            ramp=0.0,
            budget=0.0,
            precision=None,
            workload={"legacy": msgspec.to_builtins(facts), **asked(self._plan)},
            objective=Objective(),
            environment=environment,
        )

    def measure(self, facts: Facts, folder: ResultsFolder, say: Callable[[str], None]) -> None:
        """All blocks, in rotated order; cells are added to ``folder`` as they are done, and those
        that are there are not measured again."""
        names = list(self._candidates)
        done = {cell.id for cell in folder.resume()}
        for block in range(1, self._plan.blocks + 1):
            work = requests_of(facts, self._prompts, block)
            turn = block % len(names)
            for order, name in enumerate(names[turn:] + names[:turn]):
                if cell_id(block, order) in done:
                    continue
                cell, requests = self._cell(name, facts, work, block, order)
                folder.add(cell, requests)
                wrong = cell.failed or cell.invalid
                say(f"block {block}, {name}: " + (wrong or f"{cell.counts.completed} completed"))

    def _cell(
        self, name: str, facts: Facts, work: Trace, block: int, order: int
    ) -> tuple[CellRecord, list[RequestRecord]]:
        place: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "id": cell_id(block, order),
            "pair": self._plan.pair.name,
            "candidate": name,
            "load": LOAD,
            "block": block,
            "order": order,
            "followed": False,
            "started": _now(),
        }
        began = time.monotonic()
        try:
            window, preempted = self._window(name, facts, work, block)
        except (LoadError, LaunchError, ServerError, ServerUnreachable) as error:
            failed = " ".join(str(error).split())
            return CellRecord(**place, window_ns=round(facts.window * 1e9), failed=failed), []
        invalid = None
        if (window.lateness_ms or 0.0) > LATE_SHARE * facts.window * 1000:
            invalid = (
                f"the clients were late: 1 % of the requests were sent {window.lateness_ms:.0f} ms "
                f"or more after their scheduled arrival, over {LATE_SHARE:.0%} of the window"
            )
        elif preempted:
            invalid = f"requests were pre-empted {preempted} times for want of KV room"
        cell = CellRecord(
            **place,
            window_ns=window.window_ns,
            invalid=invalid,
            counts=window.counts,
            lateness_ms=window.lateness_ms,
            uses=window.uses,
            gpus=window.gpus,
            host_load=window.host_load,
            took=time.monotonic() - began,
        )
        return cell, window.records

    def _window(self, name: str, facts: Facts, work: Trace, block: int) -> tuple[Window, int]:
        server = self._servers[name]
        restarts = server.restarts_when_idle()
        llm = server.ensure()
        before = _preemptions(llm.ipc)
        load = Load(name=LOAD, kind="trace", trace=_said_arrivals(facts))
        with Loop(llm.ipc, llm.pids, server.is_running) as loop:
            window = loop.run(work, load, block=block, ramp=0.0, seconds=facts.window)
        if server.restarts_when_idle() != restarts:
            raise LoadError("a process of the server died and was started again")
        return window, _preemptions(llm.ipc) - before


def cell_id(block: int, order: int) -> str:
    """The id of a block's cell, by its turn."""
    return f"b{block:03}-o{order}"


def requests_of(facts: Facts, prompts: Prompts, block: int) -> Trace:
    """The requests of a block: Poisson arrivals in the first half of the window, all of one length.

    Drawn from the seed and the block alone, so that all servers see the same ones.
    """
    draw = drawn(facts.seed, block, ARRIVALS, 0)
    times = list(
        itertools.takewhile(lambda at: at < facts.arriving, arrival_times(facts.rate, 1.0, draw))
    )
    picked = draw.integers(len(prompts), size=len(times)).tolist()
    seeds = draw.integers(2**31, size=len(times)).tolist()
    asks = [Ask(number, facts.tokens, seed) for number, seed in enumerate(seeds)]
    return Trace(times, [prompts[index] for index in picked], asks)


def _said_arrivals(facts: Facts) -> str:
    return f"Poisson arrivals, {facts.rate:g} a second for {facts.arriving:g} s"


def _preemptions(endpoint: str) -> int:
    with Client(endpoint) as client:
        return int(client.info()["counters"].get("preemptions", 0))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
