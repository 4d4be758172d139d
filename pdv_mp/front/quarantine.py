"""Finding the request that kills its worker, without blaming those that ran beside it.

A request's ``deaths`` are those of workers that were working on it, since it last proved itself. At
the second it is opened alone, with nothing else at the scheduler; at the third it is condemned. It
proves itself by surviving :data:`PROOF` entries of tokens after it was opened: the first comes from
its prefill, the second from drafting and verifying, so all that a worker does has been done with
it. While it is on trial alone its first entry is held back: whoever kills workers only after tokens
have flowed can then not make an innocent request look guilty.

A request that proves itself each time and kills the worker later is not caught like this. When the
budget of restarts is nearly used up, no proof counts any more: each request that was in the batch
at two deaths of its life runs alone until its end, and the next death while it does condemns it.

Each replica has a quarantine of its own. A worker's death is blamed on requests of its own replica
only, so to be alone there is enough: what runs on other replicas neither suffers from a suspect nor
makes it look guilty. A suspect waits for the replica on which it was last seen at a death, which
that death has emptied, and goes to no other, where it would have to wait for an end of the work of
innocent requests. A request that has been at only one death goes wherever there is room; its
``deaths`` go with it. The budget of restarts, too, is one of each replica's process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdv_mp.front.journal import Request

ALONE_AT = 2
"""Deaths at which a request is run alone."""

CONDEMNED_AT = 3
"""Deaths at which it is not run any more."""

PROOF = 2
"""Entries of tokens, since it was opened, that clear a request."""


class Quarantine:
    """Who is suspected on the replica of ``process``, and who of them runs alone there.

    ``alone``: the request that has the scheduler to itself. ``suspects``: those that wait to have
    it, by key, in the order in which they came.
    """

    def __init__(self, process: str) -> None:
        self._process = process
        self.alone: Request | None = None
        self.suspects: dict[int, Request] = {}
        self._forgives = True

    @property
    def excludes_others(self) -> bool:
        """Whether no other request may be opened on this replica now."""
        return self.alone is not None or bool(self.suspects)

    def judge(
        self, requests: Iterable[Request], batch: Collection[int], restarts_left: int
    ) -> list[Request]:
        """The worker died while it worked on ``batch`` (keys). ``requests``: those of its replica,
        and those that wait for any. Returns those that are condemned."""
        self.alone = None
        self.suspects = {}
        self._forgives = restarts_left > 1
        condemned = []
        for request in requests:
            if request.key in batch:
                request.deaths += 1
                request.killed.append(self._process)
            if not self._forgives and len(request.killed) >= ALONE_AT:
                request.deaths = max(request.deaths, ALONE_AT)
            if request.deaths >= CONDEMNED_AT:
                condemned.append(request)
            elif request.deaths >= ALONE_AT:
                self.suspects[request.key] = request
        return condemned

    def isolate(self, request: Request) -> None:
        """A suspect is opened, alone."""
        del self.suspects[request.key]
        self.alone = request

    def holds(self, request: Request) -> bool:
        """Whether the tokens just received wait for the request's proof."""
        return self.alone is request and self._forgives and request.entries < PROOF

    def is_cleared(self, request: Request) -> bool:
        """Whether the entry just received clears a request on trial. It is alone no more then."""
        if not request.deaths or not self._forgives or request.entries < PROOF:
            return False
        request.deaths = 0
        if self.alone is not request:
            return False
        self.alone = None
        return True

    def forget(self, request: Request) -> bool:
        """The request has ended. True if it was waiting here to be run alone."""
        if self.alone is request:
            self.alone = None
        return self.suspects.pop(request.key, None) is not None
