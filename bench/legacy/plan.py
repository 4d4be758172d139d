"""What a run of the legacy window is to measure, and the servers that takes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench.legacy.counts import Side
from bench.legacy.results import BOUNDED, UNBOUNDED
from bench.results.records import Candidate, Pair, Run
from bench.servers import SAME_WORK

_ALL_KV = 1 << 50
"""Never reached: without a prefix cache a server takes no more KV than its slots can hold, and on a
CPU no more memory than is written to. On a GPU it must be allocated, so its default stays."""

_OPEN_REQUESTS = 1 << 16

SET_HERE = frozenset(("enable_prefix_caching", "max_num_seqs", "queue_factor", "max_open_requests"))
"""Options of the servers that this experiment sets."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. ``slots``: how many requests unbounded admission lets in at once,
    ``bounded``: how many the bounded one. ``reference``, ``candidate``: names of topologies, each
    with its topology and options in ``topologies``. Times in seconds; ``calibration``: of each
    server."""

    pair: Pair
    models: Mapping[str, Any]
    topologies: Mapping[str, tuple[str, Mapping[str, Any]]]
    reference: str
    candidate: str
    blocks: int
    window: float
    overload: float
    slots: int
    bounded: int
    prompt_tokens: int
    seed: int
    calibration: float = 1.5


def candidates(plan: Plan) -> dict[str, tuple[Candidate, Side]]:
    """The four servers by name.

    A server admits as many requests as it decodes in one batch. The KV pools hold all of them to
    their longest, so that nobody is pre-empted, and no request is refused.
    """
    found = {}
    for name, admission in itertools.product(
        (plan.reference, plan.candidate), (UNBOUNDED, BOUNDED)
    ):
        topology, own = plan.topologies[name]
        admitted = plan.slots if admission == UNBOUNDED else plan.bounded
        options = {
            **SAME_WORK,
            **({} if torch.cuda.is_available() else {"kv_cache_memory": _ALL_KV}),
            **own,
            "enable_prefix_caching": False,
            "max_num_seqs": admitted,
            "queue_factor": 1.0,
            "max_open_requests": _OPEN_REQUESTS,
        }
        side = Side(topology=name, admission=admission, admitted=admitted)
        label = f"{name}, {admission}"
        found[label] = (Candidate(name=label, topology=topology, options=options), side)
    return found


def asked(plan: Plan) -> dict[str, Any]:
    """What of a plan is not in the other fields of ``run.json``."""
    return {"overload": plan.overload, "prompt_tokens": plan.prompt_tokens}


def is_run_of(plan: Plan, run: Run) -> bool:
    """Whether a run that was begun is one of this plan, so that it can be taken up."""
    wanted = [candidate for candidate, _ in candidates(plan).values()]
    return (
        (run.candidates, run.pairs) == (wanted, [plan.pair])
        and (run.seed, run.window) == (plan.seed, plan.window)
        and {name: run.workload.get(name) for name in asked(plan)} == asked(plan)
    )
