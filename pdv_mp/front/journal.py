"""The open requests: what each asked for, what it was sent, and who waits for what.

A request is in one of three places. *Waiting*: accepted, and queued here until the scheduler has a
credit free. *Running*: opened at the scheduler, which holds one credit for it. *Closing*: ended
here, by a stop text, a cancel or a lost client, while the scheduler has yet to give the credit
back. Closing requests are not open any more; only their keys are kept.

When the scheduler's process dies, all that run wait again, in the order in which they came.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pdv_mp.front.quarantine import Quarantine
from pdv_mp.front.stops import OutputText
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.timeline import Timeline
from pdv_mp.wire.engine import Int32Column
from pdv_mp.wire.protocol import PackedList

if TYPE_CHECKING:
    from pdv_mp.front.outbox import Connection, WaitingTokens


@dataclass(slots=True)
class Speculation:
    """``done.speculation``, summed over the request's cycles."""

    cycles: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_per_pos: list[int] = field(default_factory=list)

    def add(self, drafted: int, accepted: int) -> None:
        """Count one verify pass; a pass without draft tokens is no cycle."""
        if not drafted:
            return
        self.cycles += 1
        self.drafted += drafted
        self.accepted += accepted
        missing = drafted - len(self.accepted_per_pos)
        if missing > 0:
            self.accepted_per_pos.extend([0] * missing)
        for position in range(accepted):
            self.accepted_per_pos[position] += 1


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """An open request.

    ``params`` has its ``max_tokens`` and ``seed`` filled in. ``output_ids`` are the tokens so far;
    ``drafted`` their flags. ``timeline`` is the front's own until the first tokens arrive;
    ``snapshot`` is the latest that the worker sent, packed, and ``overlapped`` what this process
    did beside the baton since. ``queued_ns`` to ``opened_ns`` it waited here for a credit, then
    ``engine_queued_ns`` at the scheduler for a slot. ``sent_ns``: when it was last opened; 0 while
    it waits here. ``entries``: entries of tokens received since. ``deaths``, ``all_deaths``: see
    :mod:`pdv_mp.front.quarantine`. ``held``: an entry that is not delivered yet. ``parking``: it
    was closed at the scheduler, to wait here again. ``ended``: its last message is decided, though
    perhaps not yet sent. ``logprobs``, ``prompt_logprobs``: entries collected for its ``done``,
    None where there will be none.
    """

    key: int
    connection: Connection
    id: str
    prompt_ids: Int32Column
    params: SamplingParams
    stream: bool
    wants_timeline: bool
    output: OutputText
    timeline: Timeline
    arrived_ns: int
    queued_ns: int = 0
    opened_ns: int = 0
    sent_ns: int = 0
    engine_queued_ns: int = 0
    first_token_ns: int = 0
    output_ids: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: PackedList | None = None
    prompt_logprobs: PackedList | None = None
    cached_tokens: int = 0
    speculation: Speculation = field(default_factory=Speculation)
    snapshot: list[Any] | None = None
    overlapped: dict[int, list[int]] = field(default_factory=dict)
    next_seq: int = 0
    waiting_tokens: WaitingTokens | None = None
    entries: int = 0
    deaths: int = 0
    all_deaths: int = 0
    held: tuple[Any, ...] | None = None
    parking: bool = False
    ended: bool = False

    @property
    def all_ids(self) -> Int32Column:
        """The prompt and the output so far."""
        if not self.output_ids:
            return self.prompt_ids
        return np.concatenate((self.prompt_ids, np.array(self.output_ids, np.int32)))

    @property
    def wanted_prompt_logprobs(self) -> int:
        """Alternatives to ask the engine for beside each prompt token's log-probability; -1 if
        none were asked for or all have arrived."""
        if self.prompt_logprobs is None or self.params.prompt_logprobs is None:
            return -1
        complete = self.prompt_logprobs.count >= len(self.prompt_ids) - 1
        return -1 if complete else self.params.prompt_logprobs


class Journal:
    """All requests that are not yet ended, and the scheduler's credits."""

    def __init__(self, credits: int) -> None:
        self.open: dict[int, Request] = {}
        self.credits = credits
        self.quarantine = Quarantine()
        self._all_credits = credits
        self._waiting: OrderedDict[int, Request] = OrderedDict()
        self._closing: set[int] = set()
        self._next_key = 1

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a credit."""
        return len(self._waiting)

    @property
    def num_closing(self) -> int:
        """Requests whose credit is still at the scheduler although they ended here."""
        return len(self._closing)

    def new_key(self) -> int:
        """A key that no request of this process has had."""
        key = self._next_key
        self._next_key += 1
        return key

    def add(self, request: Request) -> None:
        """Queue an accepted request behind those that wait."""
        self.open[request.key] = request
        self._waiting[request.key] = request

    def admit(self) -> Request | None:
        """The next request to open at the scheduler, with the credit taken; None if there is no
        request, no credit, or one that must be alone there."""
        if not self.credits or not self._waiting or self.quarantine.alone is not None:
            return None
        request = self.quarantine.next_suspect
        if request is None:
            request = next(iter(self._waiting.values()))
        elif self.credits < self._all_credits:
            return None
        else:
            self.quarantine.isolate(request)
        del self._waiting[request.key]
        self.credits -= 1
        request.entries = 0
        return request

    def park(self, request: Request) -> None:
        """The scheduler has given back a request that is to wait again, in its old place."""
        request.parking = False
        self.credits += 1
        self._waiting[request.key] = request
        self._waiting = OrderedDict(sorted(self._waiting.items()))

    def restart(self, batch: Collection[int], restarts_left: int) -> list[Request]:
        """The scheduler died while it worked on ``batch`` (keys): all open requests wait again, and
        what was closing is over. Returns those that must not be opened again."""
        condemned = self.quarantine.judge(self.open.values(), batch, restarts_left)
        self._waiting = OrderedDict(self.open)
        self._closing.clear()
        self.credits = self._all_credits
        for request in self.open.values():
            request.parking = False
            request.held = None
        return condemned

    def end(self, request: Request) -> bool:
        """The request is over for its client. True if the scheduler must be told to close it."""
        request.ended = True
        self.quarantine.forget(request)
        del self.open[request.key]
        if self._waiting.pop(request.key, None) is not None:
            return False
        self._closing.add(request.key)
        return True

    def release(self, key: int) -> None:
        """The scheduler's last entry for a request arrived: its credit is free again."""
        self.credits += 1
        self._closing.discard(key)

    def finish(self, request: Request) -> None:
        """The scheduler's last entry ends the request here too."""
        request.ended = True
        self.quarantine.forget(request)
        del self.open[request.key]
        self.credits += 1
