"""Groups of a timeline's states (docs/protocol.md), which a token's time is divided into."""

from __future__ import annotations

from typing import Literal

from bench.results.store import ResultsError
from pdv_mp.timeline import ORCHESTRATION
from pdv_mp.topology_rows import STAGES, TOKENIZER

_GROUP_OF: dict[str, str] = {
    "encode": "messages",
    "wire": "messages",
    "decode": "messages",
    "inbox": "hand-over",
    "batch": "hand-over",
    "publish": "hand-over",
    "text": "text",
    "outbox": "text",
    "queue": "queueing",
    "busy": "waiting for a busy worker",
    "preempted": "interruptions",
    "restart": "interruptions",
}

GROUPS: tuple[str, ...] = (
    *(f"{stage} compute" for stage in (*STAGES, TOKENIZER)),
    *dict.fromkeys(_GROUP_OF.values()),
)
"""In the order in which they are shown: compute by stage, then by what a state is."""

ORCHESTRATION_GROUPS: tuple[str, ...] = tuple(
    dict.fromkeys(group for what, group in _GROUP_OF.items() if what in ORCHESTRATION)
)
"""The groups that orchestration consists of."""

_IDLE = ("queue", "preempted", "restart")


def group_of(state: str) -> str:
    """The group of a state. Raises ResultsError for one that is none."""
    where, _, what = state.rpartition(".")
    group = f"{where} compute" if what == "compute" else _GROUP_OF.get(what)
    if group not in GROUPS:
        raise ResultsError(f"{state!r} is not a state of a timeline")
    return str(group)


def is_orchestration(state: str) -> bool:
    """Whether docs/protocol.md counts it as orchestration."""
    return state.rpartition(".")[2] in ORCHESTRATION


def phase_of(state: str) -> Literal["prefill", "decode"] | None:
    """Whether a request in this state is in its prefill, or between its first token and its last;
    None in the front, at a tokenizer and where it waits for room."""
    where, _, what = state.rpartition(".")
    places = set(where.split(">"))
    if what in _IDLE or not places <= set(STAGES):
        return None
    return "prefill" if "prefill" in places else "decode"
