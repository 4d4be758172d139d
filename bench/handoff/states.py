"""The classes of a timeline's states."""

from __future__ import annotations

from pdv_mp.topology_rows import STAGES
from pdv_mp.workers.handoffs import PARTS

STATES = (*STAGES, *PARTS, "text", "waiting")
"""Where a request's time goes: the stages' compute, the parts of a handoff, work on texts and their
delivery, and all other waiting."""


def state_class(name: str) -> str:
    """The one of :data:`STATES` that a timeline's state counts to."""
    where, _, what = name.rpartition(".")
    if what == "compute" and where in STAGES:
        return where
    if what in ("compute", "outbox"):
        return "text"
    return what if what in STATES else "waiting"
