"""The way of requests to the schedulers: opened, closed, taken back when a process dies."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from pdv_mp.front.accounting import take_back
from pdv_mp.front.journal import Journal, Request
from pdv_mp.front.replicas import Replica
from pdv_mp.timeline import state_index
from pdv_mp.wire import engine as wire

_QUEUE = state_index("front.queue")
_RESTART = state_index("front.restart")
_OPEN_ENCODE = state_index("front>verify.encode")


class Dispatcher:
    """Gives the journal's requests to the replicas.

    While one replica restarts the others serve, and take over what it had as far as they have
    credits.
    """

    def __init__(
        self, journal: Journal, replicas: Sequence[Replica], eos_ids: tuple[int, ...]
    ) -> None:
        self._journal = journal
        self._replicas = replicas
        self._eos_ids = eos_ids

    @property
    def waiting_state(self) -> int:
        """The state of a request that waits for any replica."""
        return _QUEUE if any(replica.serves for replica in self._replicas) else _RESTART

    def admit(self) -> None:
        """Open waiting requests while there are credits."""
        while (admitted := self._journal.admit()) is not None:
            self._open(*admitted)

    def _open(self, replica: Replica, request: Request) -> None:
        """One that was opened before goes on where it was: what it has of its output is part of the
        prompt now. The noise of its tokens depends on their absolute positions, so they are those
        that would have followed."""
        now = time.monotonic_ns()
        request.opened_ns = request.opened_ns or now
        request.sent_ns = now
        request.timeline.enter(_OPEN_ENCODE, now)
        params = request.params
        stop_ids = params.stop_token_ids
        if not params.ignore_eos:
            stop_ids += self._eos_ids
        message = wire.Open(
            request=request.key,
            prompt_ids=request.all_ids,
            max_tokens=(params.max_tokens or 1) - len(request.output_ids),
            sampling=(
                params.temperature,
                params.top_k,
                params.top_p,
                params.min_p,
                params.seed or 0,
            ),
            stop_ids=stop_ids,
            speculate=params.speculate,
            report_timeline=request.wants_timeline,
            timeline=request.timeline.pack(),
            logprobs=-1 if params.logprobs is None else params.logprobs,
            prompt_logprobs=request.wanted_prompt_logprobs,
            at_once=request.wants_tokens_at_once,
        )
        replica.edge.send(message, now)

    def park(self, replica: Replica, request: Request) -> None:
        """The scheduler has given back a request that is to wait again."""
        self._journal.park(replica, request)
        take_back(request, _QUEUE)

    def restart(
        self, replica: Replica, batch: Collection[int], restarts_left: int
    ) -> list[Request]:
        """A replica's process died while it worked on ``batch`` (keys), and comes back: its
        requests wait for it, or for room at another. Returns those that keep killing it."""
        were_there, condemned = self._journal.restart(replica, batch, restarts_left)
        for request in were_there:
            take_back(request, _RESTART)
        if self.waiting_state == _RESTART:
            now = time.monotonic_ns()
            for request in self._journal.waiting:
                request.timeline.enter(_RESTART, now)
        return condemned

    def resume(self, replica: Replica) -> None:
        """The process that died is back: go on with what waits."""
        now = time.monotonic_ns()
        for request in (*self._journal.waiting, *replica.quarantine.suspects.values()):
            request.timeline.enter(_QUEUE, now)
        self.admit()

    def end_turn(self) -> None:
        """Send the closes of this turn, and open what now has a credit."""
        for replica in self._replicas:
            replica.send_closes()
        self.admit()
