"""The worker that holds the scheduler: it picks the most urgent stage with work, runs a batch, and
passes results on.

:class:`Worker` has no sockets and can be driven by hand;
:func:`pdv_mp.workers.worker_process.run_worker` puts it into a process. Passing work to a stage of
its own is a function call. A stage that another process hosts is a *lane*: work goes to it as a
message, and results come to :meth:`Worker.take`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pdv_mp.config import EngineConfig
from pdv_mp.lanes.device_lock import Lock, NoLock
from pdv_mp.lanes.stamps import BatchStamps, LaneStates
from pdv_mp.resources.resource_plan import DRAFT, TARGET
from pdv_mp.resources.resources import Resources
from pdv_mp.scheduling.columns import total
from pdv_mp.scheduling.counters import Counters
from pdv_mp.scheduling.draft_plan import Drafting
from pdv_mp.scheduling.kv_arrivals import KVArrivals, without
from pdv_mp.scheduling.orders import prefill_order
from pdv_mp.scheduling.scheduler import Cycle, Scheduler
from pdv_mp.scheduling.sequences import Phase, Sequence, SequenceTable, enter_all
from pdv_mp.speculation.draft_length.fixed import FixedLength
from pdv_mp.speculation.draft_length.make import make_controller
from pdv_mp.speculation.ngram import make_index
from pdv_mp.speculative_config import DRAFT_MODEL, NGRAM
from pdv_mp.stages.draft import DraftStage
from pdv_mp.stages.messages import DraftOrder, Proposal, without_drafts
from pdv_mp.stages.prefill import PrefillStage
from pdv_mp.stages.verify import VerifyStage
from pdv_mp.timeline import state_index
from pdv_mp.topology import scheduling_of
from pdv_mp.wire import stages as wire
from pdv_mp.wire.engine import Finish, Open, PromptLogprobs, Tokens
from pdv_mp.wire.frames import Stamps, WireError
from pdv_mp.wire.protocol import MAX_BATCHES
from pdv_mp.workers.batch_record import BatchRecords
from pdv_mp.workers.cycle_clock import CycleClock
from pdv_mp.workers.flight_record import FlightRecord
from pdv_mp.workers.handoffs import Handoffs
from pdv_mp.workers.rehearsal import Rehearsed
from pdv_mp.workers.trace import Trace

PREFILL_AHEAD = 4
"""A prefill lane is given work for this many chunks, so that it does not wait for the next order
while the verifier computes."""

_STAGES = ("prefill", "draft", "verify")
_BUSY_OF = {state_index(f"{s}.inbox"): state_index(f"{s}.busy") for s in _STAGES}
_INBOX_OF = {busy: inbox for inbox, busy in _BUSY_OF.items()}
_BATCH = {s: state_index(f"{s}.batch") for s in _STAGES}
_COMPUTE = {s: state_index(f"{s}.compute") for s in _STAGES}
_PUBLISH = {s: state_index(f"{s}.publish") for s in _STAGES}
_VERIFY_INBOX = state_index("verify.inbox")
_PREFILL_INBOX = state_index("prefill.inbox")
_PREFILL = LaneStates.of("prefill")
_DRAFT = LaneStates.of("draft")

Send = Callable[[wire.StageMessage], object]
"""Hands a message to a lane; it does not block."""


@dataclass(slots=True, eq=False)
class Group:
    """Requests whose cycles run in lockstep: drafted together, then verified together.

    ``owed``: the order whose proposal a draft lane owes. ``parts``: proposals of the cycle that are
    here. ``clock``: what its cycles take.
    """

    index: int
    clock: CycleClock = field(default_factory=CycleClock)
    owed: DraftOrder | None = None
    parts: list[Proposal] = field(default_factory=list)

    @property
    def is_busy(self) -> bool:
        """Whether a cycle has been started and its verdict is still to come."""
        return self.owed is not None or bool(self.parts)

    @property
    def is_complete(self) -> bool:
        """Whether all that the cycle verifies is here."""
        return self.owed is None and bool(self.parts)

    def is_owed(self, cycle: int) -> bool:
        """Whether it waits for the proposal of this cycle."""
        return self.owed is not None and self.owed.cycle == cycle

    def take(self) -> list[Proposal]:
        """What is to be verified now."""
        parts, self.parts = self.parts, []
        return parts


class Worker:
    """A scheduler, the verify stage, and whichever other stages share its process.

    A cycle is: at most one prefill chunk, if that stage is here, then the drafts of the whole
    batch, then one verification of the whole batch. With ``--groups 2`` the batch is divided, and
    one half may be drafted in a lane while the other is verified here.

    ``lanes``: by stage, how to reach the processes that host the others. A lane takes no work
    before it has said that it is ready: until then prompts wait, and the verifier decodes alone.
    ``rehearsed``: what was measured before, for the controller of draft lengths.
    """

    def __init__(
        self,
        resources: Resources,
        config: EngineConfig,
        record: FlightRecord | None = None,
        lanes: Mapping[str, Send] | None = None,
        lock: Lock | None = None,
        rehearsed: Rehearsed | None = None,
    ) -> None:
        self._config = config
        self._record = record
        self._lock = lock or NoLock()
        self._lanes = dict(lanes or {})
        self._ready_lanes: set[str] = set()
        self.processes: dict[str, int] = {}
        """Process ids by name, of this replica; whoever knows them puts them in."""
        self.counters = Counters()
        self.batches = BatchRecords(self._lanes)
        self.handoffs = Handoffs()
        self.table = SequenceTable(resources.num_slots, resources.max_model_len)
        self.pools = resources.pools
        target, draft = resources.target, resources.draft
        rule = resources.rule(config)
        self._emulator = resources.emulator
        self.prefill: PrefillStage | None = None
        self.draft: DraftStage | None = None
        if "prefill" not in self._lanes:
            self.prefill = PrefillStage(
                resources.prefill_target,
                resources.prefill_draft,
                resources.num_slots,
                resources.max_model_len,
                resources.sampler,
            )
        self._hybrid = config.handoff.hybrid and "draft" in self._lanes
        if draft is not None and ("draft" not in self._lanes or self._hybrid):
            # Whoever verifies here need not wait for the drafts.
            defers = target.steps is not None and config.handoff.groups == 1
            self.draft = DraftStage(draft, rule, resources.num_slots, defers)
        self._steps = [
            runner.steps for runner in resources.runners.values() if runner.steps is not None
        ]
        self._recorded_before_ns = 0
        self.verify = VerifyStage(self.table, target, rule, self.counters)
        self._scheduling = scheduling_of(config)
        chunk = self._scheduling.max_num_batched_tokens
        num_groups = config.handoff.groups
        self._ngrams = make_index(config.speculation, resources.num_slots)
        can_draft = self.draft is not None or "draft" in self._lanes or self._ngrams is not None
        overlap = num_groups if "draft" in self._lanes else 1
        kinds = 0 if self._ngrams is None else self._ngrams.num_kinds
        self.controller = (
            make_controller(config.speculation, resources.num_slots, overlap, kinds)
            if can_draft
            else FixedLength(0, resources.num_slots)
        )
        if rehearsed is not None:
            self.controller.rehearsed(rehearsed.times, rehearsed.read_ns)
        self.scheduler = Scheduler(
            self.table,
            resources.pools,
            self._scheduling,
            self.controller,
            self.counters,
            prefix_caching=resources.plan.prefix_caching,
            prefill_backlog=chunk if self.prefill is not None else PREFILL_AHEAD * chunk,
            lanes=self._lanes,
            groups=num_groups,
            ngrams=self._ngrams,
        )
        own = {TARGET: target.cache}
        if self.draft is not None and draft is not None:
            own[DRAFT] = draft.cache
        self._arrivals = KVArrivals(
            own,
            resources.plan.private_caches,
            self.table,
            self.scheduler,
            self.handoffs,
            self._release,
        )
        self._prefill_turn = True
        self._computed_until_ns = 0
        self._halting = False
        self._groups = [Group(index) for index in range(num_groups)]

    def trace_to(self, trace: Trace) -> None:
        """Trace batches and messages from now on."""
        self.batches.trace = self.handoffs.trace = trace

    # ------------------------------------------------------------------ from the front

    def open(self, message: Open) -> None:
        """Take over a request, which may have come while a batch was computed."""
        self.scheduler.submit(message, time.monotonic_ns(), self._computed_until_ns)

    def close(self, requests: Iterable[int]) -> None:
        """End requests at the front's wish; each is answered by a finishing entry."""
        withdrawn = []
        for request in requests:
            sequence = self.scheduler.close(request)
            if sequence is None:
                continue
            if sequence.phase is not Phase.PREFILLING:
                if not self.table.in_flight[sequence.slot]:
                    self.scheduler.end_now(sequence, Finish.ABORT)
            elif self.prefill is None:
                withdrawn.append(sequence.slot)
            else:
                self.prefill.withdraw(sequence.slot)
                self.scheduler.end_now(sequence, Finish.ABORT)
        if withdrawn:
            self._lanes["prefill"](wire.Withdraw(slots=np.array(withdrawn, np.int64)))

    def _release(self, numbers: npt.NDArray[np.int64]) -> None:
        self._lanes["prefill"](wire.Release(numbers=numbers))

    def emissions(self, encode_ns: int) -> list[Tokens | PromptLogprobs]:
        """What is to be sent to the front since the last call."""
        return self.scheduler.take_emissions(encode_ns)

    # ------------------------------------------------------------------ from the lanes

    def take(self, stage: str, message: wire.StageMessage) -> None:
        """A message from the lane that hosts ``stage``. Raises WireError if it cannot have sent
        it."""
        if isinstance(message, wire.LaneReady):
            self._ready_lanes.add(stage)
            self.processes.update(message.facts.get("processes", {}))
        elif isinstance(message, wire.PrefillResult) and stage == "prefill":
            self._prefilled_by_lane(message)
        elif isinstance(message, wire.Withdrawn) and stage == "prefill":
            self.handoffs.received("prefill>verify", message.stamps)
            for sequence in self.scheduler.sequences(message.slots):
                self.scheduler.end_now(sequence, Finish.ABORT)
        elif isinstance(message, wire.Halted) and stage == "draft":
            self._halting = False
            self.scheduler.halted(np.zeros(0, np.int64))
        elif isinstance(message, wire.DraftResult) and stage == "draft":
            self.counters.ahead_drafts += message.ahead_drafts
            self.counters.ahead_hits += message.ahead_hits
            if self._config.handoff.draft_ahead:
                self.scheduler.halted(message.proposal.slots)
            self._drafted_by_lane(message)
        else:
            raise WireError(f"a {stage} lane cannot send a {type(message).__name__} message")

    def lane_died(self, stage: str, slots: Iterable[int]) -> None:
        """The lane that hosts ``stage`` is gone and was working on ``slots``; it comes back with
        :class:`~pdv_mp.wire.stages.LaneReady`.

        What it had is taken back: prompts wait to be admitted again, and a cycle goes on without
        the drafts that it owed.
        """
        self._ready_lanes.discard(stage)
        now = time.monotonic_ns()
        self.scheduler.blame(slots, stage)
        if stage == "prefill":
            self._arrivals.prefill_lane_died()
            self.scheduler.requeue_prefilling(now)
            return
        self.table.known_to_draft[:] = False
        self._halting = False
        self.scheduler.halted(np.zeros(0, np.int64))
        self._arrivals.draft_lane_died()
        for group in self._groups:
            if self._arrivals.private:
                # Their verdict would count rows that are lost.
                group.parts = [without_drafts(part) for part in group.parts]
            if group.owed is None:
                continue
            order, group.owed = group.owed, None
            group.parts.append(without_drafts(order))
            enter_all(self.scheduler.sequences(order.slots), _VERIFY_INBOX, now)

    def _prefilled_by_lane(self, message: wire.PrefillResult) -> None:
        result, batch = message.result, message.batch
        if message.rows:
            result = without(result, self._arrivals.take(message.rows))
            message.stamps.decoded_ns = time.monotonic_ns()  # taking rows over is decoding
        sequences = self.scheduler.sequences(result.computed)
        if len(sequences) != len(result.computed):
            raise WireError("the prefill lane returned a slot that it did not have")
        for sequence, order, busy_ns in zip(
            sequences, message.orders.tolist(), message.busy_ns.tolist(), strict=True
        ):
            if order[0]:
                stamps = Stamps(*order)
                _PREFILL.ordered(sequence, stamps)
                self.handoffs.picked("verify>prefill", stamps, batch, busy_ns)
            _PREFILL.computed(sequence, batch, busy_ns)
        self.handoffs.returned("prefill>verify", message.stamps, batch)
        self._note("prefill", batch, len(sequences), int(result.lengths.sum()))
        done = set(result.slots.tolist())
        enter_all((s for s in sequences if s.slot not in done), _PREFILL_INBOX, batch.ended_ns)
        _PREFILL.returned((s for s in sequences if s.slot in done), message.stamps)
        self.scheduler.prefilled(result, message.stamps.decoded_ns)

    def _drafted_by_lane(self, message: wire.DraftResult) -> None:
        group = next((group for group in self._groups if group.is_owed(message.cycle)), None)
        if group is None:
            self.counters.stale_proposals += len(message.proposal.slots)
            return
        group.owed = None
        round_trip = message.stamps.decoded_ns - message.order.encode_ns - message.busy_ns
        computed = message.batch.ended_ns - message.batch.picked_ns
        group.clock.drafted(round_trip if len(self._groups) == 1 else computed)
        proposal = message.proposal
        self._arrivals.drafted(proposal.slots, message.lost)
        sequences = self.scheduler.sequences(proposal.slots)
        for sequence in sequences:
            _DRAFT.ordered(sequence, message.order)
            _DRAFT.computed(sequence, message.batch, message.busy_ns)
        _DRAFT.returned(sequences, message.stamps)
        enter_all(sequences, _VERIFY_INBOX, message.stamps.decoded_ns)
        self.handoffs.picked("verify>draft", message.order, message.batch, message.busy_ns)
        self.handoffs.returned("draft>verify", message.stamps, message.batch)
        self.handoffs.waits("draft>verify", message.stamps.decoded_ns, group.index)
        self._note("draft", message.batch, len(sequences), int(proposal.lengths.sum()))
        group.parts.append(proposal)

    # ------------------------------------------------------------------ the loop

    def step(self) -> bool:
        """Run the most urgent batch. False if nothing can be done before a message arrives."""
        progressed = self._run_most_urgent()
        if self.scheduler.num_lingering and not self._halting and not self._is_owed:
            self._halting = True
            self._lanes["draft"](wire.Halt())
        return progressed

    def _run_most_urgent(self) -> bool:
        self._arrivals.drop_ended()
        self._admit()
        run = self._most_urgent()
        if run is None:
            return False
        if not self._lock.exclusive:
            return run()
        asked = time.monotonic_ns()
        with self._lock:
            self._move_pending(_BUSY_OF, asked)
            now = time.monotonic_ns()
            self._move_pending(_INBOX_OF, now)
            self.handoffs.busy(asked, now)
            return run()

    def _most_urgent(self) -> Callable[[], bool] | None:
        prompts = self._has_prompts and (self._prefill_turn or not self.scheduler.has_cycle)
        if prompts and len(self._groups) > 1:  # of several, some may be complete at any time
            return self._run_prefill
        complete = next((group for group in self._groups if group.is_complete), None)
        if complete is not None:
            return partial(self._run_verify, complete)
        if prompts:
            return self._run_prefill
        for group in self._groups:
            if not group.is_busy and self.scheduler.has_cycle_of(group.index):
                return partial(self._start_cycle, group)
        return None

    @property
    def _has_prompts(self) -> bool:
        return self.prefill is not None and bool(self.prefill.inbox)

    @property
    def _in_flight(self) -> bool:
        """Whether a cycle has been started and its verdict is still to come."""
        return any(group.is_busy for group in self._groups)

    @property
    def _is_owed(self) -> bool:
        """Whether a draft lane owes a proposal."""
        return any(group.owed is not None for group in self._groups)

    def _admit(self) -> None:
        if self.prefill is None and "prefill" not in self._ready_lanes:
            return
        now = time.monotonic_ns()
        sequences = self.scheduler.admit(now)
        if not sequences:
            return
        slots = np.array([sequence.slot for sequence in sequences], np.int64)
        order = prefill_order(self.table, slots)
        if self.prefill is not None:
            if not self.prefill.inbox:
                self.handoffs.waits("verify>prefill", now)
            self.handoffs["verify>prefill"].local += 1
            self.prefill.put(order)
        else:
            self._lanes["prefill"](wire.PrefillWork(order=order))

    def _start_cycle(self, group: Group, verifies: bool = True) -> bool:
        """Begin a group's next cycle; False if there is nothing to do before a message arrives.
        ``verifies``: what needs no drafts is verified at once, and not left to the next step, and
        so is what was drafted here if no lane could have sent anything meanwhile, and nobody else
        waits for the device."""
        drafting = self._who_drafts()
        self._recorded_before_ns = self._recorded_ns
        cycle = self.scheduler.start_cycle(time.monotonic_ns(), drafting, group.index)
        self._decided(cycle)
        # The group that starts goes behind the others, so that they start in turn.
        self._groups.remove(group)
        self._groups.append(group)
        self._prefill_turn = True
        if cycle.plain is not None:
            group.parts.append(cycle.plain)
        if cycle.drafts is not None and self.draft is not None and drafting is Drafting.HERE:
            self.draft.put(cycle.drafts)
            self._run_draft(group)
            if verifies and not self._lanes and not self._lock.exclusive:
                self._run_verify(group)
        elif cycle.drafts is not None:
            group.owed = cycle.drafts
            now = time.monotonic_ns()
            group.clock.begun(now, cycle.drafts)
            self.handoffs.follows("verify>draft", now)
            rows = self._arrivals.with_order(cycle.drafts.slots)
            self._lanes["draft"](wire.DraftWork(order=cycle.drafts, rows=rows))
        elif cycle.plain is not None and verifies:
            self._run_verify(group)
        elif cycle.plain is not None:
            return True
        else:
            # All wait for room that others in some stage hold, or have been pre-empted.
            waiting_for_lanes = self.prefill is None and self.scheduler.num_prefilling > 0
            waiting_for_lanes |= self.scheduler.num_lingering > 0
            return not waiting_for_lanes and not self._in_flight
        return True

    def _who_drafts(self) -> Drafting:
        alone = self.scheduler.num_running + self.scheduler.num_ready == 1
        if self.draft is not None and (not self._hybrid or alone):
            return Drafting.HERE
        return Drafting.IN_LANE if "draft" in self._ready_lanes else Drafting.NONE

    def _run_prefill(self) -> bool:
        if self.prefill is None:
            return True
        budget = self._scheduling.max_num_batched_tokens
        if self.scheduler.num_running:
            budget = max(1, int(budget * self._scheduling.prefill_priority))
        picked = time.monotonic_ns()
        batch = self.prefill.form(budget)
        if batch is None:
            return True
        self._prefill_turn = False
        sequences = self.scheduler.sequences(batch.slots)
        started = self._begin("prefill", sequences, picked)
        result = self.prefill.run(batch)
        ended = self._end("prefill", sequences, picked, started, int(batch.lengths.sum()))
        self._interrupt()
        self.scheduler.prefilled(result, ended)
        if len(result.slots):
            self.handoffs.handed("prefill>verify", time.monotonic_ns())
        return True

    def _run_draft(self, group: Group) -> None:
        if self.draft is None:
            return
        picked = time.monotonic_ns()
        order = self.draft.form()
        if order is None:
            return
        group.clock.begun(picked, order)
        sequences = self.scheduler.sequences(order.slots)
        started = self._begin("draft", sequences, picked, group.index)
        proposal = self.draft.run(order)
        ended = self._end("draft", sequences, picked, started, total(order.lengths))
        self._interrupt(group)
        group.clock.drafted(ended - picked)
        group.parts.append(proposal)
        now = time.monotonic_ns()
        enter_all(sequences, _VERIFY_INBOX, now)
        self.handoffs.handed("draft>verify", now)
        self.handoffs.waits("draft>verify", now, group.index)

    def _run_verify(self, group: Group) -> bool:
        picked = time.monotonic_ns()
        if not group.clock.has_begun:
            self.handoffs.dropped("draft", group.index)
            group.clock.begun(picked)
        parts = group.take()
        pending = next((part.pending for part in parts if part.pending is not None), None)
        for part in parts:
            self.table.in_flight[part.slots] = False  # of those dropped as stale, too
            self.verify.put(part)
        proposal = self.verify.form()
        if proposal is None:
            return True
        sequences = self.scheduler.sequences(proposal.slots)
        started = self._begin("verify", sequences, picked, group.index)
        verdict = self.verify.run(proposal)
        drafted = total(proposal.lengths)
        rows, discarded = drafted + len(proposal.slots), drafted - total(verdict.accepted)
        ended = self._end("verify", sequences, picked, started, rows, discarded)
        self._interrupt(group)
        if pending is not None:  # verifying has waited for it
            picked = max(picked, group.clock.drafted_by(pending.nanoseconds))
        times = group.clock.verified(proposal, picked, ended)
        if self._recorded_ns == self._recorded_before_ns:
            self.controller.timed(times)
        self.verify.commit(verdict)
        now = time.monotonic_ns()
        self.scheduler.verified(verdict, now)
        if self._config.server.check_invariants:
            self.scheduler.check()
        if self.scheduler.has_cycle_of(group.index):
            drafting = self._who_drafts()
            if drafting is Drafting.IN_LANE and proposal.lengths.any():
                # Its order goes out before anything else, since the next token waits for it. A
                # cycle without drafts has none, and would come before prompts and other groups.
                self._start_cycle(group, verifies=False)
            elif drafting is Drafting.HERE:
                self.handoffs.handed("verify>draft", now)
                self.handoffs.waits("verify>draft", now, group.index)
        else:
            group.clock.interrupted()
        return True

    @property
    def _recorded_ns(self) -> int:
        """Time that has gone into recording steps, which none of them takes again."""
        return sum(steps.recorded_ns for steps in self._steps)

    def _interrupt(self, group: Group | None = None) -> None:
        """Something was computed that is no part of a cycle of the other groups."""
        for other in self._groups:
            if other is not group:
                other.clock.interrupted()

    def _decided(self, cycle: Cycle) -> None:
        """Trace how many tokens are drafted in a cycle that starts."""
        trace = self.batches.trace
        if trace is None:
            return
        parts = [part for part in (cycle.drafts, cycle.plain) if part is not None]
        drafts = max((int(part.lengths.max()) for part in parts), default=0)
        sequences = sum(len(part.slots) for part in parts)
        trace.decision(time.monotonic_ns(), drafts, sequences, self.controller.acceptance)

    # ------------------------------------------------------------------ stamps

    def _move_pending(self, change: dict[int, int], now: int) -> None:
        """Stamp a change of state of the sequences that wait in some stage's inbox here."""
        inbox = [] if self.prefill is None else self.prefill.inbox
        prefilling = [s for s in map(self.scheduler.sequence_at, inbox) if s]
        for sequence in prefilling + self.scheduler.running_sequences():
            state = change.get(sequence.timeline.state)
            if state is not None:
                sequence.timeline.enter(state, now)

    def _begin(self, stage: str, sequences: list[Sequence], picked: int, group: int = 0) -> int:
        """Stamp a batch as picked and started; all that wait elsewhere are kept busy by it."""
        enter_all(sequences, _BATCH[stage], picked)
        self._move_pending(_BUSY_OF, picked)
        if self._record is not None:
            self._record.enter([sequence.request for sequence in sequences])
        started = time.monotonic_ns()
        enter_all(sequences, _COMPUTE[stage], started)
        self.handoffs.begun(stage, picked, started, group)
        return started

    def _end(
        self,
        stage: str,
        sequences: list[Sequence],
        picked: int,
        started: int,
        rows: int,
        discarded: int = 0,
    ) -> int:
        """Stamp a batch's results as known, and record it."""
        ended = self._computed_until_ns = time.monotonic_ns()
        enter_all(sequences, _PUBLISH[stage], ended)
        self._move_pending(_INBOX_OF, ended)
        self.handoffs.ended(stage, picked, ended)
        self._note(stage, BatchStamps(picked, started, ended), len(sequences), rows, discarded)
        return ended

    def _note(
        self, stage: str, batch: BatchStamps, sequences: int, rows: int, discarded: int = 0
    ) -> None:
        scheduler, groups = self.scheduler, 1
        if len(self._groups) > 1:
            groups = sum(scheduler.has_cycle_of(group.index) for group in self._groups)
        running = scheduler.num_running
        self.batches.note(stage, batch, sequences, rows, running, groups, discarded)

    # ------------------------------------------------------------------ questions

    @property
    def _method(self) -> str:
        """How drafts are made, by the names of ``--speculative-config``."""
        if self._ngrams is not None:
            return NGRAM
        return DRAFT_MODEL if self.controller.max_length else "none"

    def info(self, batches: int = MAX_BATCHES) -> dict[str, Any]:
        """Stages, pools, counters and the last ``batches``, for wire.engine.InfoReply."""
        scheduler = self.scheduler
        emulated = {} if self._emulator is None else {"emulated": self._emulator.report()}
        return {
            **emulated,
            "stages": {
                "prefill": {
                    "hosted": self.prefill is not None,
                    "ready": self.prefill is not None or "prefill" in self._ready_lanes,
                    "prompts": scheduler.num_prefilling,
                    "waiting": scheduler.num_waiting,
                },
                "draft": {
                    "hosted": self.draft is not None,
                    "ready": self.draft is not None or "draft" in self._ready_lanes,
                },
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
            "processes": dict(self.processes),
            "counters": {**self.counters.as_dict(), "open": scheduler.num_open},
            "speculation": {
                "method": self._method,
                **self.controller.decisions.as_dict(),
                "controllers": [
                    {
                        "name": self.controller.name,
                        "length": self.controller.length,
                        "acceptance": self.controller.acceptance,
                    }
                ],
            },
            "batches": self.batches.latest(batches),
            "batch_totals": self.batches.totals(),
            "handoffs": self.handoffs.as_dict(),
        }
