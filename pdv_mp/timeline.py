"""Where a request's time goes: the states of docs/protocol.md, stamped at every change.

All stamps are ``time.monotonic_ns()``, one clock for all processes of a host. A request's *baton*
is in exactly one state; :class:`Timeline` closes the old state and opens the new one at the same
stamp, so that the times in all states add up to the time between the first stamp and the last by
construction. What runs beside the baton is added with :meth:`Timeline.add_overlapped`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

STATES: tuple[str, ...] = (
    "client>front.decode",
    "front.text",
    "front.queue",
    "front>tokenizer.encode",
    "front>tokenizer.wire",
    "front>tokenizer.decode",
    "tokenizer.inbox",
    "tokenizer.busy",
    "tokenizer.batch",
    "tokenizer.compute",
    "tokenizer.publish",
    "tokenizer>front.encode",
    "tokenizer>front.wire",
    "tokenizer>front.decode",
    "front.publish",
    "front>verify.encode",
    "front>verify.wire",
    "front>verify.decode",
    "prefill.queue",
    "verify>prefill.encode",
    "verify>prefill.wire",
    "verify>prefill.decode",
    "prefill.inbox",
    "prefill.busy",
    "prefill.batch",
    "prefill.compute",
    "prefill.publish",
    "prefill.restart",
    "prefill>verify.encode",
    "prefill>verify.wire",
    "prefill>verify.decode",
    "verify>draft.encode",
    "verify>draft.wire",
    "verify>draft.decode",
    "draft.inbox",
    "draft.busy",
    "draft.batch",
    "draft.compute",
    "draft.publish",
    "draft>verify.encode",
    "draft>verify.wire",
    "draft>verify.decode",
    "verify.queue",
    "verify.inbox",
    "verify.busy",
    "verify.batch",
    "verify.compute",
    "verify.publish",
    "verify.preempted",
    "verify>front.encode",
    "verify>front.wire",
    "verify>front.decode",
    "front.inbox",
    "front.outbox",
    "front.restart",
)
"""Every state that a request can be in; those of an edge only where it joins two processes."""

_INDEX = {name: index for index, name in enumerate(STATES)}
ORCHESTRATION = ("encode", "wire", "decode", "inbox", "batch", "publish", "text", "outbox")
"""The parts of a state's name that count as orchestration, as docs/protocol.md defines it."""


def state_index(name: str) -> int:
    """The number of a state. Raises KeyError for a name that is not one."""
    return _INDEX[name]


class Timeline:
    """The states of one request. Not thread-safe; owned by the process that holds the baton."""

    __slots__ = ("count", "nanoseconds", "overlapped", "since", "started", "state")

    def __init__(self, state: int, now: int) -> None:
        self.started = now
        self.state = state
        self.since = now
        self.nanoseconds = [0] * len(STATES)
        self.count = [0] * len(STATES)
        self.overlapped: dict[int, list[int]] = {}

    def enter(self, state: int, now: int) -> None:
        """Close the present state at ``now`` and open ``state``. Re-entering it is no change."""
        if state == self.state:
            return
        old = self.state
        self.nanoseconds[old] += now - self.since
        self.count[old] += 1
        self.state = state
        self.since = now

    def add_overlapped(self, state: int, nanoseconds: int, count: int = 1) -> None:
        """Count work that ran beside the baton."""
        entry = self.overlapped.setdefault(state, [0, 0])
        entry[0] += count
        entry[1] += nanoseconds

    def pack(self) -> list[Any]:
        """Positional form for a message; :meth:`unpack` reads it back."""
        used = [
            [index, count, nanoseconds]
            for index, (count, nanoseconds) in enumerate(
                zip(self.count, self.nanoseconds, strict=True)
            )
            if count or nanoseconds
        ]
        over = [[state, *entry] for state, entry in self.overlapped.items()]
        return [self.started, self.state, self.since, used, over]

    def snapshot(self, state: int, now: int) -> list[Any]:
        """:meth:`pack` as if ``state`` were entered at ``now``; the timeline itself goes on."""
        started, _, _, used, over = self.pack()
        elapsed = now - self.since
        for entry in used:
            if entry[0] == self.state:
                entry[1] += 1
                entry[2] += elapsed
                break
        else:
            used.append([self.state, 1, elapsed])
        return [started, state, now, used, over]

    @classmethod
    def unpack(cls, packed: list[Any]) -> Timeline:
        """The inverse of :meth:`pack`."""
        started, state, since, used, over = packed
        timeline = cls(state, since)
        timeline.started = started
        for index, count, nanoseconds in used:
            timeline.count[index] = count
            timeline.nanoseconds[index] = nanoseconds
        timeline.overlapped = {index: [count, ns] for index, count, ns in over}
        return timeline

    def report(self, now: int) -> dict[str, Any]:
        """``done.timeline`` of docs/protocol.md; the present state ends at ``now``."""
        self.nanoseconds[self.state] += now - self.since
        self.count[self.state] += 1
        self.since = now
        states = {
            STATES[index]: {"n": self.count[index], "ns": self.nanoseconds[index]}
            for index in range(len(STATES))
            if self.count[index]
        }
        over = {STATES[i]: {"n": count, "ns": ns} for i, (count, ns) in self.overlapped.items()}
        return {"e2e_ns": now - self.started, "states": states, "overlapped": over}


def orchestration_share(report: dict[str, Any]) -> float:
    """Orchestration time / end-to-end time of one ``done.timeline``."""
    total = report["e2e_ns"]
    spent = sum(
        entry["ns"]
        for name, entry in report["states"].items()
        if name.rsplit(".", 1)[1] in ORCHESTRATION
    )
    return float(spent / total) if total else float(np.nan)
