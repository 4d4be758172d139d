"""Runs the trials of one server after the other, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bench.emulation.law import Arrangement, Work
from bench.emulation.records import Trial, TrialFolder
from bench.load import LoadError, Loop
from bench.load.held_out import HeldOut, tokenizer_of
from bench.load.lengths import around
from bench.load.workloads import Workload
from bench.results.records import Load
from bench.servers import SAME_WORK, Server
from pdv_mp.client.client import Client, ServerError, ServerUnreachable
from pdv_mp.client.llm import LaunchError
from pdv_mp.emulation.cost_table import CostTable
from pdv_mp.emulation.device_time import missed_percentile

START_SECONDS = 10.0
"""What a server is thought to take to start and to end, where none has been started yet."""

AROUND_SECONDS = 0.1
"""What a window takes besides: until the server is idle, and to cancel what is open at its end."""

RAMP_SHARE = 0.3
MOST_SEQUENCES = 256

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A server: ``name`` in words, ``where`` it computes, by which ``table`` (None: on a real
    device), with ``options`` of ``pdv-launch`` besides. ``row``: the text of a topology file."""

    name: str
    where: Arrangement
    k: int
    table: CostTable | None
    row: str | None = None
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """A trial that is to be done: what is known of it before, and for how long it runs."""

    trial: Trial
    setup: Setup
    seconds: float

    @property
    def takes(self) -> float:
        """Seconds, without the server's start."""
        return self.seconds * (1 + RAMP_SHARE) + AROUND_SECONDS


@dataclass
class Budget:
    """What is left of the time that a run may take."""

    seconds: float
    started: float = field(default_factory=time.monotonic)
    start_seconds: float = START_SECONDS

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.started)


def workload(work: Work, seed: int) -> Workload:
    """Prompts of one length cut from the held-out files, answers around one length."""
    prompts = HeldOut(tokenizer_of(None)).windows(round(work.prompt))
    return Workload(prompts, around(round(work.answer)), seed)


def run_trials(
    folder: TrialFolder,
    groups: Sequence[Sequence[Plan]],
    requests: Workload,
    budget: Budget,
    scratch: Path,
    say: Say,
) -> int:
    """Do what is not done, group by group; how many trials did not fit into the budget.

    Each of ``groups`` are the trials of one server, or of a few that are measured in turn, block by
    block.
    """
    missing = _missing(folder, groups)
    chosen = whole_blocks(missing, budget)
    left_out = _windows(missing) - _windows(chosen)
    say(_outlook(chosen, left_out, budget))
    for together in chosen:
        while together and budget.left < _needed(together, budget):
            # The last ones have the most clients, or are blocks that repeat others.
            last = _turn(together[-1])
            kept = [plan for plan in together if _turn(plan) != last]
            left_out += len(together) - len(kept)
            together = kept
        if together:
            _run_servers(folder, together, requests, budget, scratch, say)
    return left_out


def left_to_do(
    folder: TrialFolder, groups: Sequence[Sequence[Plan]], budget: Budget
) -> tuple[int, float]:
    """How many windows, and about how many seconds they take."""
    missing = _missing(folder, groups)
    return _windows(missing), sum(_needed(group, budget) for group in missing)


def _missing(folder: TrialFolder, groups: Sequence[Sequence[Plan]]) -> list[list[Plan]]:
    """A turn is done if all servers of the group were asked in one sitting: windows of different
    hours are not compared."""
    done = {trial.id: trial.sitting for trial in folder.trials() if trial.failed is None}
    missing = []
    for group in groups:
        sittings: dict[tuple[int, int], set[int | None]] = {}
        for plan in group:
            sittings.setdefault(_turn(plan), set()).add(done.get(plan.trial.id))
        whole = {turn for turn, found in sittings.items() if len(found) == 1 and None not in found}
        missing.append([plan for plan in group if _turn(plan) not in whole])
    return missing


def _turn(plan: Plan) -> tuple[int, int]:
    return plan.trial.block, plan.trial.concurrency


def whole_blocks(groups: Sequence[Sequence[Plan]], budget: Budget) -> list[list[Plan]]:
    """The groups without as many of the last blocks, of all of them alike, as do not fit into what
    is left of the budget; the first that is to be done is kept."""
    chosen = [list(group) for group in groups]
    for last in sorted({plan.trial.block for group in groups for plan in group}, reverse=True)[:-1]:
        if sum(_needed(group, budget) for group in chosen) <= budget.left:
            break
        chosen = [[plan for plan in group if plan.trial.block < last] for group in chosen]
    return chosen


def _windows(groups: Sequence[Sequence[Plan]]) -> int:
    return sum(len(group) for group in groups)


def _outlook(groups: Sequence[Sequence[Plan]], left_out: int, budget: Budget) -> str:
    studies = ", ".join(dict.fromkeys(plan.trial.study for group in groups for plan in group))
    if not studies:
        return "nothing is left to be measured here"
    seconds = sum(_needed(group, budget) for group in groups)
    text = f"{studies}: {_windows(groups)} windows, about {seconds / 60:.1f} minutes"
    if left_out:
        text += f"; {left_out} windows of the last blocks do not fit into the budget"
    return f"{text}; {max(0.0, budget.left) / 60:.1f} minutes are left of it"


def _needed(plans: Sequence[Plan], budget: Budget) -> float:
    servers = len({plan.setup for plan in plans})
    return sum(plan.takes for plan in plans) + servers * budget.start_seconds


def _run_servers(
    folder: TrialFolder,
    plans: Sequence[Plan],
    requests: Workload,
    budget: Budget,
    scratch: Path,
    say: Say,
) -> None:
    servers: dict[Setup, Server | str] = {}
    with ExitStack() as stack:
        for number, setup in enumerate(dict.fromkeys(plan.setup for plan in plans)):
            began = time.monotonic()
            server = _server(setup, scratch, number)
            stack.callback(server.close)
            try:
                server.ensure()
                servers[setup] = server
            except LaunchError as error:
                servers[setup] = " ".join(str(error).split())
            budget.start_seconds = max(1.0, time.monotonic() - began)
        for plan in plans:
            found = servers[plan.setup]
            if isinstance(found, str):
                trial = msgspec.structs.replace(plan.trial, failed=found)
            else:
                trial = measure(found, plan, requests)
            folder.add(trial)
            rate = trial.failed or f"{trial.rate:.0f} tokens/s"
            say(f"{trial.kind} {trial.id}: {rate}")


def _server(setup: Setup, scratch: Path, number: int) -> Server:
    options = {
        **SAME_WORK,
        "num_speculative_tokens": setup.k,
        "max_num_seqs": MOST_SEQUENCES,
        "groups": setup.where.groups,
        **dict(setup.options),
    }
    if setup.table is not None:
        path = scratch / f"table-{number}.json"
        path.write_text(setup.table.to_json(), encoding="utf-8")
        options["device"] = f"emulated:{path}"
    if setup.where.extra_us:
        delay = f"{setup.where.extra_us:.0f}"
        options["inject_delay"] = f"draft>verify={delay},verify>draft={delay}"
    if setup.row is None:
        return Server(setup.where.topology, options)
    row = scratch / f"row{number}.yaml"
    row.write_text(setup.row, encoding="utf-8")
    return Server(None, {**options, "topology_file": str(row)})


def measure(server: Server, plan: Plan, requests: Workload) -> Trial:
    """One trial; a server that dies or cannot serve is one that failed."""
    trial, name = plan.trial, f"c{plan.trial.concurrency}"
    load = Load(name=name, kind="closed", concurrency=trial.concurrency)
    try:
        restarts = server.restarts_when_idle()
        llm = server.ensure()
        with Client(llm.ipc) as client:
            before = client.info()
            with Loop(llm.ipc, llm.pids, server.is_running) as loop:
                window = loop.run(
                    requests,
                    load,
                    block=trial.block + 1,
                    ramp=RAMP_SHARE * plan.seconds,
                    seconds=plan.seconds,
                )
            after = client.info()
        if server.restarts_when_idle() != restarts:
            raise LoadError("a process of the server died and was started again")
    except (LaunchError, LoadError, ServerError, ServerUnreachable) as error:
        server.close()
        return msgspec.structs.replace(trial, failed=" ".join(str(error).split()))
    if not window.tokens:
        return msgspec.structs.replace(trial, failed="no token arrived in the window")
    return msgspec.structs.replace(
        trial,
        seconds=window.seconds,
        rate=window.tokens / window.seconds,
        drafted=_grown(before, after, "drafted_tokens"),
        accepted=_grown(before, after, "accepted_tokens"),
        missed_us=_missed(before, after),
    )


def _grown(before: dict[str, Any], after: dict[str, Any], name: str) -> int:
    return int(after["counters"][name] - before["counters"][name])


def _missed(before: dict[str, Any], after: dict[str, Any]) -> tuple[float, float] | None:
    if "emulated" not in after:
        return None
    old, new = before["emulated"]["missed"], after["emulated"]["missed"]
    counts = {bucket: count - old.get(bucket, 0) for bucket, count in new.items()}
    p50, p99 = (missed_percentile(counts, percent) for percent in (50, 99))
    return None if p50 is None or p99 is None else (p50, p99)
