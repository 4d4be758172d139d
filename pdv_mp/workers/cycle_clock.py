"""What the cycles of a group take, for whoever decides how long their drafts are."""

from __future__ import annotations

from pdv_mp.scheduling.columns import total
from pdv_mp.speculation.draft_length.controller import CycleTimes
from pdv_mp.stages.messages import USUALLY_FED, DraftOrder, Proposal


class CycleClock:
    """The stamps of one cycle at a time, ns (monotonic)."""

    def __init__(self) -> None:
        self._verdict_ns: int | None = None
        self._overhead_ns: int | None = None
        self._order: DraftOrder | None = None
        self._draft_ns = 0
        self._begun_ns = 0
        self.has_begun = False
        """Whether a stage of the present cycle has started."""

    def interrupted(self) -> None:
        """Something else was computed, or there was nothing to do: what comes next does not follow
        the last verdict directly."""
        self._verdict_ns = None

    def begun(self, now: int, order: DraftOrder | None = None) -> None:
        """The first stage of a cycle starts; ``order``: what it drafts."""
        self._order, self._draft_ns, self.has_begun = order, 0, True
        self._begun_ns = now
        self._overhead_ns = None if self._verdict_ns is None else now - self._verdict_ns
        self._verdict_ns = None

    def drafted(self, nanoseconds: int) -> None:
        """So long after the order its proposal was here."""
        self._draft_ns = nanoseconds

    def drafted_by(self, nanoseconds: int) -> int:
        """The device took so long for a draft that the host has not waited for; when it was done,
        at the earliest."""
        self._draft_ns = max(self._draft_ns, nanoseconds)
        return self._begun_ns + self._draft_ns

    def verified(self, proposal: Proposal, started: int, ended: int) -> CycleTimes:
        """The verdict is known; what the cycle took."""
        self._verdict_ns, self.has_begun = ended, False
        order, sequences, lengths = self._order, len(proposal.slots), proposal.lengths.tolist()
        self._order = None
        drafting = steps = fed = draft_ns = 0
        if order is not None and self._draft_ns:
            lacking = (order.base - order.starts).tolist()
            drafting, steps, draft_ns = len(lacking), max(order.lengths.tolist()), self._draft_ns
            fed = sum(count - USUALLY_FED for count in lacking if count > USUALLY_FED)
        return CycleTimes(
            sequences=sequences,
            rows=sequences + sum(lengths),
            context=total(proposal.base),
            verify_ns=ended - started,
            drafting=drafting,
            steps=steps,
            fed=fed,
            draft_ns=draft_ns,
            overhead_ns=self._overhead_ns,
        )
