"""The scheduler's end of KV handoffs, where each worker has caches of its own.

Of a finished prompt the verifier's rows go into the cache here at once. The draft's rows do so
where this worker drafts. Else they wait until the draft lane gets its first order for the slot, go
with it, and are kept until the proposal shows that the lane has them: if the lane dies before that,
its successor gets them. What a lane had when it died is lost, and the draft computes it again from
the beginning of the text, which its next order holds then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.resources.kv_handoff import KVReceiver, numbers_of
from pdv_mp.scheduling.scheduler import Scheduler
from pdv_mp.scheduling.sequences import Phase, Sequence, SequenceTable
from pdv_mp.stages.kv_rows import KVRows
from pdv_mp.stages.messages import Prefilled, TokenLogprobs
from pdv_mp.workers.handoffs import Handoffs

Release = Callable[[npt.NDArray[np.int64]], object]
"""Tells the prefill lane which of its buffers are no longer needed."""


@dataclass(slots=True)
class _Waiting:
    """Draft rows of a sequence; ``sent``: with an order whose proposal is still to come."""

    sequence: Sequence
    rows: KVRows
    sent: bool = False


class KVArrivals:
    """Rows that the prefill lane has handed on. ``caches`` by role: those of this worker's own
    stages; rows of other models are for a draft lane. Nothing happens here where caches are shared.
    """

    def __init__(
        self,
        caches: Mapping[str, KVCache],
        private: bool,
        table: SequenceTable,
        scheduler: Scheduler,
        handoffs: Handoffs,
        release: Release,
    ) -> None:
        self.private = private
        self._receiver = KVReceiver(caches)
        self._table = table
        self._scheduler = scheduler
        self._handoffs = handoffs
        self._release = release
        self._waiting: dict[int, _Waiting] = {}

    def take(self, rows: Iterable[KVRows]) -> set[int]:
        """Rows of prompts that are complete. Returns the slots whose rows are lost because their
        lane has died meanwhile; the supervisor is about to say so."""
        lost: set[int] = set()
        read: list[KVRows] = []
        edge = self._handoffs["prefill>verify"]
        for part in rows:
            sequence = self._scheduler.sequence_at(part.slot)
            wanted = sequence is not None and not self._table.closing[part.slot]
            if sequence is not None and wanted and part.role not in self._receiver.roles:
                self._waiting[part.slot] = _Waiting(sequence, part)
                if part.number is None:
                    edge.kv_bytes += part.nbytes
                continue
            if wanted and part.slot not in lost:
                if self._receiver.take(part):
                    edge.kv_bytes += part.nbytes
                else:
                    lost.add(part.slot)
            read.append(part)
        for slot in lost & self._waiting.keys():
            del self._waiting[slot]
        self._give_back(read)
        return lost

    def drop_ended(self) -> None:
        """Give back the rows of sequences that have left their slot or do not draft any more."""
        ended = [
            slot
            for slot, waiting in self._waiting.items()
            if self._scheduler.sequence_at(slot) is not waiting.sequence
            or not waiting.sequence.params.speculate
        ]
        self._give_back([self._waiting.pop(slot).rows for slot in ended])

    def with_order(self, slots: npt.NDArray[np.int64]) -> tuple[KVRows, ...]:
        """The rows that go to the draft lane with an order for these slots."""
        rows = []
        for slot in slots.tolist():
            waiting = self._waiting.get(slot)
            if waiting is not None:
                waiting.sent = True
                rows.append(waiting.rows)
        self._handoffs["verify>draft"].kv_bytes += sum(part.nbytes for part in rows)
        return tuple(rows)

    def drafted(self, slots: npt.NDArray[np.int64], lost: npt.NDArray[np.int64]) -> None:
        """The draft lane has taken over what came with the order for these slots, but for those
        whose rows were ``lost``."""
        taken = [slot for slot in slots.tolist() if slot in self._waiting]
        self._give_back([self._waiting.pop(slot).rows for slot in taken])
        if len(lost):
            self._table.draft_len[lost] = 0
            self._table.known_to_draft[slots] = False

    def prefill_lane_died(self) -> None:
        """The buffers of the lane are gone. What the draft lane was told to read it has read, or it
        says that it could not."""
        gone = [slot for slot, waiting in self._waiting.items() if waiting.rows.number is not None]
        for slot in gone:
            if not self._waiting.pop(slot).sent:
                self._table.draft_len[slot] = 0

    def draft_lane_died(self) -> None:
        """All rows that the lane had are gone, but for those that are still here."""
        if not self.private:
            return
        for waiting in self._waiting.values():
            waiting.sent = False
        for slot in range(self._table.num_slots):
            sequence = self._scheduler.sequence_at(slot)
            if sequence is None or sequence.phase is Phase.PREFILLING or slot in self._waiting:
                continue
            self._table.draft_len[slot] = 0

    def _give_back(self, rows: Iterable[KVRows]) -> None:
        numbers = numbers_of(rows)
        if len(numbers):
            self._release(numbers)


def without(result: Prefilled, lost: set[int]) -> Prefilled:
    """The same result, in which the prompts of these slots are not complete."""
    if not lost:
        return result
    kept = np.array([slot not in lost for slot in result.slots.tolist()], np.bool_)
    logprobs = result.logprobs
    if logprobs is not None:
        logprobs = TokenLogprobs(logprobs.chosen[kept], logprobs.top_ids[kept], logprobs.top[kept])
    chunks = tuple(chunk for chunk in result.prompt_logprobs if chunk.slot not in lost)
    return replace(
        result,
        slots=result.slots[kept],
        next_ids=result.next_ids[kept],
        logprobs=logprobs,
        prompt_logprobs=chunks,
    )
