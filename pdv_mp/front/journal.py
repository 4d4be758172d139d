"""The open requests: what each asked for, what it was sent, and who waits for what.

A request is in one of four places. *Untokenized*: open, but not accepted yet, since a tokenizer
still has its prompt (see :mod:`pdv_mp.front.tokenizers`). *Waiting*: accepted, and queued here
until a replica's scheduler has a credit free. *Running*: opened at the scheduler of one replica,
which holds one credit for it. *Closing*: ended here, by a stop text, a cancel or a lost client,
while the scheduler has yet to give the credit back. Closing requests are not open any more; only
their keys are kept.

When a scheduler's process dies, all that run there wait again, in the order in which they came,
ahead of those that were never opened. They go to whichever replica has room first, but those that
are suspected of the death (see :mod:`pdv_mp.front.quarantine`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pdv_mp.front.stops import OutputText
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.timeline import Timeline
from pdv_mp.wire.engine import Int32Column
from pdv_mp.wire.protocol import PackedList

if TYPE_CHECKING:
    from pdv_mp.front.outbox import Connection, WaitingTokens
    from pdv_mp.front.replicas import Replica


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

    ``replica``: where it runs, or waits to be alone; None while it waits for any.
    ``untokenized``: its prompt's ids are not known yet, and it is not accepted; ``cancelled``: its
    client has ended it before that. ``params`` has its ``max_tokens`` and ``seed`` filled in when
    it is accepted. ``output_ids`` are the tokens so far; ``drafted`` their flags. ``timeline`` is
    the front's own until the first tokens arrive; ``snapshot`` is the latest that the worker sent,
    packed, and ``overlapped`` what this process did beside the baton since. ``queued_ns`` to
    ``opened_ns`` it waited here for a credit, then ``engine_queued_ns`` at the scheduler for a
    slot. ``first_token_ns``, ``last_token_ns``: when the text of those was known; without
    ``stream`` of the last one when the scheduler had it. ``sent_ns``:
    when it was last opened; 0 while it waits here. ``entries``: entries of tokens received since.
    ``killed``: the processes that died while they worked on it; ``deaths``: how many of them
    count, see :mod:`pdv_mp.front.quarantine`. ``held``: an entry that is not delivered yet.
    ``parking``: it was closed at the scheduler, to wait here again. ``ended``: its last message is
    decided, though perhaps not yet sent. ``logprobs``, ``prompt_logprobs``: entries collected for
    its ``done``, None where there will be none.
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
    replica: Replica | None = None
    queued_ns: int = 0
    opened_ns: int = 0
    sent_ns: int = 0
    engine_queued_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0
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
    killed: list[str] = field(default_factory=list)
    held: tuple[Any, ...] | None = None
    parking: bool = False
    untokenized: bool = False
    cancelled: bool = False
    ended: bool = False

    @property
    def all_ids(self) -> Int32Column:
        """The prompt and the output so far."""
        if not self.output_ids:
            return self.prompt_ids
        return np.concatenate((self.prompt_ids, np.array(self.output_ids, np.int32)))

    @property
    def wants_tokens_at_once(self) -> bool:
        """Whether it matters when its tokens come: to its client, to the search for its stops, to
        its timeline, or since they prove that it does not kill its worker."""
        awaited = self.stream or self.wants_timeline or bool(self.params.stop)
        return awaited or self.deaths > 0

    @property
    def wanted_prompt_logprobs(self) -> int:
        """Alternatives to ask the engine for beside each prompt token's log-probability; -1 if
        none were asked for or all have arrived."""
        if self.prompt_logprobs is None or self.params.prompt_logprobs is None:
            return -1
        complete = self.prompt_logprobs.count >= len(self.prompt_ids) - 1
        return -1 if complete else self.params.prompt_logprobs


class Journal:
    """All requests that are not yet ended, and which replica has which."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.open: dict[int, Request] = {}
        self._replicas = replicas
        self._waiting: OrderedDict[int, Request] = OrderedDict()
        self._next_key = 1

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a credit, those that wait to be alone included."""
        suspects = sum(len(replica.quarantine.suspects) for replica in self._replicas)
        return len(self._waiting) + suspects

    @property
    def num_untokenized(self) -> int:
        """Requests whose prompts are being tokenized."""
        return sum(request.untokenized for request in self.open.values())

    @property
    def waiting(self) -> list[Request]:
        """Those that wait for a credit of any replica, in order."""
        return list(self._waiting.values())

    def new_key(self) -> int:
        """A key that no request of this process has had."""
        key = self._next_key
        self._next_key += 1
        return key

    def expect(self, request: Request) -> None:
        """A request is open whose prompt's ids are not known yet."""
        self.open[request.key] = request

    def add(self, request: Request) -> None:
        """Queue an accepted request behind those that wait."""
        self.open[request.key] = request
        self._waiting[request.key] = request

    def admit(self) -> tuple[Replica, Request] | None:
        """The next request to open and the replica to open it at, the credit taken; None if there
        is no request or no credit.

        That is one that waits to be alone on a replica that is empty now; else the first that
        waits, at the replica with the fewest open requests.
        """
        for replica in self._replicas:
            suspect = replica.next_suspect()
            if suspect is not None:
                replica.quarantine.isolate(suspect)
                return self._open(replica, suspect)
        if not self._waiting:
            return None
        candidates = [replica for replica in self._replicas if replica.takes_any]
        if not candidates:
            return None
        _, request = self._waiting.popitem(last=False)
        return self._open(min(candidates, key=lambda replica: replica.num_open), request)

    def _open(self, replica: Replica, request: Request) -> tuple[Replica, Request]:
        request.replica = replica
        request.entries = 0
        replica.running[request.key] = request
        return replica, request

    def park(self, replica: Replica, request: Request) -> None:
        """The scheduler has given back a request that is to wait again, in its old place."""
        request.parking = False
        request.replica = None
        del replica.running[request.key]
        self._wait_again([request])

    def _wait_again(self, requests: Sequence[Request]) -> None:
        self._waiting.update((request.key, request) for request in requests)
        self._waiting = OrderedDict(sorted(self._waiting.items()))

    def restart(
        self, replica: Replica, batch: Collection[int], restarts_left: int
    ) -> tuple[list[Request], list[Request]]:
        """A replica's scheduler died while it worked on ``batch`` (keys): all that were there wait
        again, and what was closing is over. Returns the requests that were there, and those of them
        that must not be opened again."""
        were_there = [request for request in self.open.values() if request.replica is replica]
        concerned = [
            request for request in self.open.values() if request.replica in (replica, None)
        ]
        blamed = replica.running.keys() & set(batch)
        condemned = replica.quarantine.judge(concerned, blamed, restarts_left)
        for request in replica.quarantine.suspects.values():
            self._waiting.pop(request.key, None)
            request.replica = replica
        for request in were_there:
            request.parking = False
            request.held = None
            if request.key not in replica.quarantine.suspects:
                request.replica = None
        replica.died()
        self._wait_again([request for request in were_there if request.replica is None])
        return were_there, condemned

    def end(self, request: Request) -> None:
        """The request is over for its client; a scheduler that has it will be told to close it."""
        request.ended = True
        del self.open[request.key]
        self._waiting.pop(request.key, None)
        replica = request.replica
        if replica is not None and not replica.quarantine.forget(request):
            replica.close(request)

    def finish(self, replica: Replica, request: Request) -> None:
        """The scheduler's last entry ends the request here too."""
        request.ended = True
        replica.quarantine.forget(request)
        del self.open[request.key]
        del replica.running[request.key]
