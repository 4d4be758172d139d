"""Stamps of work that a lane did, put into the timelines of those who waited for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pdv_mp.scheduling.sequences import Sequence
from pdv_mp.timeline import state_index
from pdv_mp.wire.frames import BatchStamps, Stamps

__all__ = ["BatchStamps", "LaneStates"]


@dataclass(frozen=True, slots=True)
class LaneStates:
    """The states of a request on its way to a lane, in it, and back."""

    to_encode: int
    to_wire: int
    to_decode: int
    inbox: int
    busy: int
    batch: int
    compute: int
    publish: int
    from_encode: int
    from_wire: int
    from_decode: int

    @classmethod
    def of(cls, stage: str) -> LaneStates:
        """Those of a stage whose work the verifier's process orders."""
        to, back = f"verify>{stage}", f"{stage}>verify"
        return cls(
            *(state_index(f"{to}.{what}") for what in ("encode", "wire", "decode")),
            *(
                state_index(f"{stage}.{what}")
                for what in ("inbox", "busy", "batch", "compute", "publish")
            ),
            *(state_index(f"{back}.{what}") for what in ("encode", "wire", "decode")),
        )

    def ordered(self, sequence: Sequence, order: Stamps) -> None:
        """The order came into the lane's inbox."""
        timeline = sequence.timeline
        timeline.enter(self.to_encode, order.encode_ns)
        timeline.enter(self.to_wire, order.sent_ns)
        timeline.enter(self.to_decode, order.received_ns)
        timeline.enter(self.inbox, order.decoded_ns)

    def computed(self, sequence: Sequence, batch: BatchStamps, busy_ns: int = 0) -> None:
        """A batch was run; of the wait before it the lane computed ``busy_ns`` for others."""
        timeline = sequence.timeline
        if busy_ns:
            timeline.enter(self.busy, batch.picked_ns - busy_ns)
        timeline.enter(self.batch, batch.picked_ns)
        timeline.enter(self.compute, batch.started_ns)
        timeline.enter(self.publish, batch.ended_ns)

    def returned(self, sequences: Iterable[Sequence], result: Stamps) -> None:
        """The result arrived."""
        for sequence in sequences:
            sequence.timeline.enter(self.from_encode, result.encode_ns)
            sequence.timeline.enter(self.from_wire, result.sent_ns)
            sequence.timeline.enter(self.from_decode, result.received_ns)
