"""How much of their speed a draft and a verifier keep when both run at once.

Overlap index = r_draft(both) / r_draft(alone) + r_verify(both) / r_verify(alone), with rates r in
steps per second: 1 is taking turns, 2 is free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from bench.gpu_facts import gpu
from bench.gpu_facts.facts import Report
from bench.gpu_facts.peers import Peer, Talk
from bench.gpu_facts.workloads import PAIRS, Steps

ROLES = ("draft", "verify")
WAYS = ("eager", "graph")
BATCH, CONTEXT = 8, 512
Step = Callable[[], None]
Rates = dict[str, float]


def overlap_index(alone: Rates, both: Rates) -> float:
    """The index from steps per second by role."""
    return sum(both[role] / alone[role] for role in ROLES)


def rate(step: Step, seconds: float) -> float:
    """Steps per second over a time."""
    count = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        step()
        count += 1
    return count / elapsed


def measure_two_streams(report: Report) -> None:
    """In one process: a thread and a stream for each model."""
    for pair in PAIRS:
        models = {role: Steps(PAIRS[pair], role, BATCH, CONTEXT) for role in ROLES}
        for way in WAYS:
            steps = {
                role: made.run if way == "eager" else made.captured()
                for role, made in models.items()
            }
            _compare(report, f"{pair}, {way}", partial(_threads, steps))


def _threads(steps: Mapping[str, Step], roles: tuple[str, ...], seconds: float) -> Rates:
    found: Rates = {}
    together = threading.Barrier(len(roles))

    def run(role: str) -> None:
        with torch.cuda.stream(gpu.stream()):
            steps[role]()
            together.wait(60)
            found[role] = rate(steps[role], seconds)

    threads = [threading.Thread(target=run, args=(role,), daemon=True) for role in roles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) < len(roles):
        raise RuntimeError("a thread has failed; its traceback is above")
    return found


def measure_two_processes(report: Report) -> None:
    """A process for each model."""
    compare_processes(report, {}, "")


def compare_processes(
    report: Report,
    environment: Mapping[str, str],
    label: str,
    check: Callable[[list[int]], None] | None = None,
) -> None:
    """The same with processes that have more in their environment; ``check`` gets their ids."""
    for pair in PAIRS:
        with Peer("steps", environment) as draft, Peer("steps", environment) as verify:
            peers = {"draft": draft, "verify": verify}
            for role, peer in peers.items():
                peer.send(pair=pair, role=role)
            for peer in peers.values():
                peer.receive()
            if check is not None:
                check([draft.pid, verify.pid])
            for way in WAYS:
                _compare(report, f"{pair}, {way}{label}", partial(_ask_all, peers, way))


def _ask_all(peers: Mapping[str, Peer], way: str, roles: tuple[str, ...], seconds: float) -> Rates:
    for role in roles:
        peers[role].send(way=way, seconds=seconds)
    return {role: float(peers[role].receive()["rate"]) for role in roles}


def _compare(report: Report, label: str, rates: Callable[[tuple[str, ...], float], Rates]) -> None:
    """Rounds of each alone and both at once."""
    seconds = 0.3 if report.quick else 0.7
    alone: dict[str, list[float]] = {role: [] for role in ROLES}
    both: dict[str, list[float]] = {role: [] for role in ROLES}
    indices = []
    for _ in range(report.repeats(3, 2)):
        apart = {role: rates((role,), seconds)[role] for role in ROLES}
        together = rates(ROLES, seconds)
        indices.append(overlap_index(apart, together))
        for role in ROLES:
            alone[role].append(apart[role])
            both[role].append(together[role])
    report.numbers(f"{label}: overlap index", "", indices)
    for role in ROLES:
        report.numbers(f"{label}: {role} alone", "steps/s", alone[role])
        report.numbers(f"{label}: {role} beside the other", "steps/s", both[role])


def steps_peer(talk: Talk) -> None:
    """Load a model, then run it for as long as asked."""
    order = talk.receive()
    steps = Steps(PAIRS[order["pair"]], order["role"], BATCH, CONTEXT)
    step = {"eager": steps.run, "graph": steps.captured()}
    talk.send(ready=True)
    while "stop" not in (order := talk.receive()):
        talk.send(rate=rate(step[order["way"]], order["seconds"]))
