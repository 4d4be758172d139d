"""A worker: it hosts stages, picks the most urgent one with work, runs a batch, passes results on.

:class:`Worker` has no sockets and can be driven by hand; :func:`pdv_mp.worker_process.run_worker`
puts it into a process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pdv_mp.config import EngineConfig
from pdv_mp.counters import Counters
from pdv_mp.flight_record import FlightRecord
from pdv_mp.resources import Resources
from pdv_mp.scheduler import Scheduler
from pdv_mp.sequences import Phase, Sequence, SequenceTable, enter_all
from pdv_mp.speculation.rules import acceptance_rule
from pdv_mp.stages.draft import DraftStage
from pdv_mp.stages.prefill import PrefillStage
from pdv_mp.stages.verify import VerifyStage
from pdv_mp.timeline import state_index
from pdv_mp.wire.engine import Finish, PromptLogprobs, Tokens

BATCHES_KEPT = 4096
"""Batches that the record holds; older ones are forgotten."""

BATCHES_SHOWN = 256
"""Of these, how many ``info`` shows."""

_STAGES = ("prefill", "draft", "verify")
_BUSY_OF = {state_index(f"{s}.inbox"): state_index(f"{s}.busy") for s in _STAGES}
_INBOX_OF = {busy: inbox for inbox, busy in _BUSY_OF.items()}
_BATCH = {s: state_index(f"{s}.batch") for s in _STAGES}
_COMPUTE = {s: state_index(f"{s}.compute") for s in _STAGES}
_PUBLISH = {s: state_index(f"{s}.publish") for s in _STAGES}
_VERIFY_INBOX = state_index("verify.inbox")


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch that a stage ran; times in ns (monotonic).

    ``rows``: tokens fed, of a draft batch tokens proposed. ``decoding``: sequences that were in the
    decode batch at that time, in this batch or waiting.
    """

    stage: str
    picked_ns: int
    started_ns: int
    ended_ns: int
    sequences: int
    rows: int
    decoding: int

    def as_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class Worker:
    """All stages of the ``unified`` topology, with the scheduler, in one loop.

    A cycle is: at most one prefill chunk, then the drafts of the whole batch, then one
    verification of the whole batch. So between two verify batches lies at most one prefill chunk.
    """

    def __init__(
        self, resources: Resources, config: EngineConfig, record: FlightRecord | None = None
    ) -> None:
        self._config = config
        self._record = record
        self.counters = Counters()
        self.batches: deque[BatchRecord] = deque(maxlen=BATCHES_KEPT)
        self.table = SequenceTable(resources.num_slots, resources.max_model_len)
        self.pools = resources.pools
        target, draft = resources.target, resources.draft
        self.prefill = PrefillStage(self.table, target, draft, self.counters)
        rule = acceptance_rule(config.speculation.acceptance)
        self.draft = DraftStage(self.table, draft, rule, self.counters) if draft else None
        self.verify = VerifyStage(self.table, target, rule, self.counters)
        self.scheduler = Scheduler(
            self.table,
            resources.pools,
            config.scheduling,
            config.speculation,
            self.counters,
            can_draft=draft is not None,
            prefix_caching=config.cache.enable_prefix_caching,
        )
        self._prefill_turn = True

    def close(self, requests: Iterable[int]) -> None:
        """End requests at the front's wish; each is answered by a finishing entry."""
        for request in requests:
            sequence = self.scheduler.close(request)
            if sequence is None:
                continue
            if sequence.phase is Phase.PREFILLING:
                self.prefill.withdraw(sequence.slot)
                self.scheduler.end_now(sequence, Finish.ABORT)
            elif not self._in_flight:
                self.scheduler.end_now(sequence, Finish.ABORT)

    def step(self) -> bool:
        """Run the most urgent batch. False if no stage has work."""
        for sequence in self.scheduler.admit(time.monotonic_ns()):
            self.prefill.put(sequence.slot)
        if self.draft is not None and self.draft.inbox is not None:
            self._run_draft()
        elif self.verify.inbox:
            self._run_verify()
        elif self.prefill.inbox and (self._prefill_turn or not self.scheduler.has_cycle):
            self._run_prefill()
        elif self.scheduler.has_cycle:
            self._start_cycle()
        else:
            return False
        return True

    def emissions(self, encode_ns: int) -> list[Tokens | PromptLogprobs]:
        """What is to be sent to the front since the last call."""
        return self.scheduler.take_emissions(encode_ns)

    def info(self) -> dict[str, Any]:
        """Stages, pools, counters and the record of batches, for wire.engine.InfoReply."""
        scheduler = self.scheduler
        return {
            "stages": {
                "prefill": {"inbox": len(self.prefill.inbox), "waiting": scheduler.num_waiting},
                "draft": {"hosted": self.draft is not None},
                "verify": {"running": scheduler.num_running, "ready": scheduler.num_ready},
            },
            "pools": {
                "slots": self.table.num_slots,
                "slots_in_use": self.pools.slots_in_use,
                "blocks": self.pools.num_blocks,
                "blocks_in_use": self.pools.blocks_in_use,
                "blocks_cached": self.pools.blocks_cached,
                "blocks_free": self.pools.blocks_free,
                "block_size": self.pools.block_size,
            },
            "counters": {**self.counters.as_dict(), "open": scheduler.num_open},
            "batches": [record.as_dict() for record in list(self.batches)[-BATCHES_SHOWN:]],
        }

    @property
    def _in_flight(self) -> bool:
        """Whether a cycle has been started and its verdict is still to come."""
        return bool(self.verify.inbox) or (self.draft is not None and self.draft.inbox is not None)

    # ------------------------------------------------------------------ one batch of each stage

    def _start_cycle(self) -> None:
        cycle = self.scheduler.start_cycle(time.monotonic_ns())
        self._prefill_turn = True
        if cycle.plain is not None:
            self.verify.put(cycle.plain)
        if cycle.drafts is not None and self.draft is not None:
            self.draft.put(cycle.drafts)
            self._run_draft()
        else:
            self._run_verify()

    def _run_prefill(self) -> None:
        budget = self._config.scheduling.max_num_batched_tokens
        if self.scheduler.num_running:
            budget = max(1, int(budget * self._config.scheduling.prefill_priority))
        picked = time.monotonic_ns()
        batch = self.prefill.form(budget)
        if batch is None:
            return
        self._prefill_turn = False
        sequences = self.scheduler.sequences(batch.slots)
        started = self._begin("prefill", sequences, picked)
        result = self.prefill.run(batch)
        ended = self._end("prefill", sequences, picked, started, int(batch.lengths.sum()))
        self.scheduler.prefilled(result, ended)

    def _run_draft(self) -> None:
        if self.draft is None:
            return
        picked = time.monotonic_ns()
        order = self.draft.form()
        if order is None:
            return
        sequences = self.scheduler.sequences(order.slots)
        started = self._begin("draft", sequences, picked)
        proposal = self.draft.run(order)
        self._end("draft", sequences, picked, started, int(order.lengths.sum()))
        self.verify.put(proposal)
        enter_all(sequences, _VERIFY_INBOX, time.monotonic_ns())

    def _run_verify(self) -> None:
        picked = time.monotonic_ns()
        proposal = self.verify.form()
        if proposal is None:
            return
        sequences = self.scheduler.sequences(proposal.slots)
        started = self._begin("verify", sequences, picked)
        verdict = self.verify.run(proposal)
        rows = int(proposal.lengths.sum()) + len(proposal.slots)
        self._end("verify", sequences, picked, started, rows)
        self.verify.commit(verdict)
        if self.draft is not None:
            self.draft.commit(verdict)
        self.scheduler.verified(verdict, time.monotonic_ns())
        if self._config.server.check_invariants:
            self.scheduler.check()

    # ------------------------------------------------------------------ stamps

    def _move_pending(self, change: dict[int, int], now: int) -> None:
        """Stamp a change of state of the sequences that wait in some stage's inbox."""
        prefilling = [s for s in map(self.scheduler.sequence_at, self.prefill.inbox) if s]
        for sequence in prefilling + self.scheduler.running_sequences():
            state = change.get(sequence.timeline.state)
            if state is not None:
                sequence.timeline.enter(state, now)

    def _begin(self, stage: str, sequences: list[Sequence], picked: int) -> int:
        """Stamp a batch as picked and started; all that wait elsewhere are kept busy by it."""
        enter_all(sequences, _BATCH[stage], picked)
        self._move_pending(_BUSY_OF, picked)
        if self._record is not None:
            self._record.enter([sequence.request for sequence in sequences])
        started = time.monotonic_ns()
        enter_all(sequences, _COMPUTE[stage], started)
        return started

    def _end(
        self, stage: str, sequences: list[Sequence], picked: int, started: int, rows: int
    ) -> int:
        """Stamp a batch's results as known, and record it."""
        ended = time.monotonic_ns()
        enter_all(sequences, _PUBLISH[stage], ended)
        self._move_pending(_INBOX_OF, ended)
        self.batches.append(
            BatchRecord(
                stage, picked, started, ended, len(sequences), rows, self.scheduler.num_running
            )
        )
        return ended
