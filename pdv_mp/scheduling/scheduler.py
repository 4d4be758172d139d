"""The scheduler of a replica: the one owner of its requests, slots and blocks.

A request is admitted when a slot and room for its tokens are free, prefilled, waits in ``ready``
until the batch has a place, runs, and hands its slot back when the stage that had it last returns
it. Its KV grows while it runs. Where there is no room to grow, the youngest request is pre-empted:
it gives up its slot and waits, with its output as a part of its prompt, to be admitted again. The
oldest one can always go on, since no request is taken that would not fit alone. The scheduler is
plain data: a worker calls it between batches, and stamps come from the caller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np

from pdv_mp.config import SchedulingOptions
from pdv_mp.sampling_params import SamplingParams
from pdv_mp.scheduling.columns import total
from pdv_mp.scheduling.counters import Counters
from pdv_mp.scheduling.draft_plan import Drafting, DraftPlan
from pdv_mp.scheduling.emissions import Emissions, logprob_columns
from pdv_mp.scheduling.kv_manager import KVManager
from pdv_mp.scheduling.orders import draft_order
from pdv_mp.scheduling.pools import Pools
from pdv_mp.scheduling.sequences import (
    MAX_STOP_IDS,
    Phase,
    Sequence,
    SequenceTable,
    Slots,
    enter_all,
)
from pdv_mp.speculation.draft_length.controller import Column, DraftLengthController
from pdv_mp.speculation.ngram import NGramIndex
from pdv_mp.stages.messages import (
    DraftOrder,
    Prefilled,
    Proposal,
    TokenLogprobs,
    Verdict,
)
from pdv_mp.timeline import Timeline, state_index
from pdv_mp.wire.engine import Finish, Open, PromptLogprobs, Tokens

_WIRE = state_index("front>verify.wire")
_DECODE = state_index("front>verify.decode")
_ADMISSION = state_index("prefill.queue")
_PREFILL_INBOX = state_index("prefill.inbox")
_PREFILL_BUSY = state_index("prefill.busy")
_BATCH_QUEUE = state_index("verify.queue")
_DRAFT_INBOX = state_index("draft.inbox")
_VERIFY_INBOX = state_index("verify.inbox")
_PREEMPTED = state_index("verify.preempted")
_RESTART = state_index("prefill.restart")

DEATHS_BEFORE_ALONE = 2
"""Deaths of a lane that had a request in its batch, after which the request is treated apart."""

DEATHS_BEFORE_FAILURE = 3


@dataclass(frozen=True, slots=True)
class Cycle:
    """The work of one cycle: what is to be drafted, and what is verified without a draft."""

    drafts: DraftOrder | None
    plain: Proposal | None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a stage yields for each of B slots: the first ``counts[b]`` of ``emitted`` [B, K + 1],
    at ascending positions from the committed length on, after ``drafted[b]`` drafts of which
    ``accepted[b]`` hold."""

    emitted: Column
    counts: Column
    drafted: Column
    accepted: Column
    logprobs: TokenLogprobs | None


class Scheduler:
    """Admission, the running batch, commits, and what the front is to be told."""

    def __init__(
        self,
        table: SequenceTable,
        pools: Pools,
        scheduling: SchedulingOptions,
        controller: DraftLengthController,
        counters: Counters,
        prefix_caching: bool,
        prefill_backlog: int,
        lanes: Collection[str] = (),
        groups: int = 1,
        ngrams: NGramIndex | None = None,
    ) -> None:
        """``controller`` decides how many tokens are drafted in each cycle.

        ``prefill_backlog``: admit while fewer prompt tokens than this are to be computed.
        ``lanes``: stages in other processes. Work for one is in its inbox when its message has
        arrived there, not when it is ordered. ``groups``: into so many the batch is divided, each
        with cycles of its own. ``ngrams``: drafts are looked up here, and no stage makes them.
        """
        self._table = table
        self._pools = pools
        self._kv = KVManager(table, pools, counters, prefix_caching)
        fills_all = "prefill" in lanes or "draft" in lanes
        self._drafts = DraftPlan(table, self._kv, controller, ngrams, fills_all)
        self._ngrams = ngrams
        self._scheduling = scheduling
        self._prefill_backlog = prefill_backlog
        self._prefill_is_here = "prefill" not in lanes
        self._draft_is_here = "draft" not in lanes
        self._cycle = 0
        self._groups = groups
        self._counters = counters
        self._by_slot: list[Sequence | None] = [None] * table.num_slots
        self._by_request: dict[int, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._prefilling: set[int] = set()
        self._ready: deque[Sequence] = deque()
        self._running: list[int] = []
        self._submitted = 0
        self._emissions = Emissions()

    # ------------------------------------------------------------------ questions

    @property
    def num_open(self) -> int:
        """Requests that have not been finished."""
        return len(self._by_request)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def num_prefilling(self) -> int:
        """Requests that the prefill stage has."""
        return len(self._prefilling)

    @property
    def num_ready(self) -> int:
        """Prefilled requests that wait for a place in the batch."""
        return len(self._ready)

    @property
    def num_running(self) -> int:
        """Requests in the decode batch."""
        return len(self._running)

    @property
    def has_emissions(self) -> bool:
        """Whether there is something to tell the front."""
        return bool(self._emissions)

    def owes_emissions(self, now: int) -> bool:
        """Whether there is something that the front should know by now."""
        return self._emissions.are_due(now)

    @property
    def has_cycle(self) -> bool:
        """Whether requests are decoding, or could."""
        return bool(self._running or self._ready)

    def has_cycle_of(self, group: int) -> bool:
        """Whether :meth:`start_cycle` would give work to a group."""
        return bool(self._members(group)) or (self._may_join and self._is_smallest(group))

    @property
    def _may_join(self) -> bool:
        """Whether a request that is ready has a place in the decode batch."""
        return bool(self._ready) and len(self._running) < self._scheduling.max_num_seqs

    def _members(self, group: int) -> list[int]:
        return [slot for slot in self._running if self._table.group[slot] == group]

    def _is_smallest(self, group: int) -> bool:
        counts = np.bincount(self._table.group[self._running], minlength=self._groups)
        return bool(counts[group] == counts.min())

    def sequences(self, slots: Slots) -> list[Sequence]:
        """The sequences that own these slots."""
        found = [self._by_slot[slot] for slot in slots.tolist()]
        return [sequence for sequence in found if sequence is not None]

    def sequence_at(self, slot: int) -> Sequence | None:
        """The sequence that owns a slot, if any."""
        return self._by_slot[slot]

    def running_sequences(self) -> list[Sequence]:
        """The sequences of the decode batch."""
        return [sequence for slot in self._running if (sequence := self._by_slot[slot])]

    # ------------------------------------------------------------------ arrivals and departures

    def submit(self, message: Open, now: int = 0, computed_until: int = 0) -> None:
        """Take over a request; the front has checked that it fits this engine. It is ``now``, or
        when the message was decoded; since then the worker computed until ``computed_until``."""
        temperature, top_k, top_p, min_p, seed = message.sampling
        params = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            speculate=message.speculate and self._drafts.controller.max_length > 0,
        )
        timeline = Timeline.unpack(message.timeline)
        timeline.enter(_WIRE, message.stamps.sent_ns)
        timeline.enter(_DECODE, message.stamps.received_ns)
        decoded_ns = message.stamps.decoded_ns
        if computed_until > decoded_ns:
            timeline.enter(_PREFILL_BUSY, decoded_ns)
        timeline.enter(_PREFILL_INBOX, max(decoded_ns, computed_until))
        timeline.enter(_ADMISSION, max(now, decoded_ns, computed_until))
        sequence = Sequence(
            request=message.request,
            token_ids=message.prompt_ids,
            max_len=len(message.prompt_ids) + message.max_tokens,
            budget=message.max_tokens,
            params=params,
            seed=seed,
            stop_ids=message.stop_ids,
            report_timeline=message.report_timeline,
            timeline=timeline,
            submitted_ns=decoded_ns,
            age=self._submitted,
            logprobs=message.logprobs,
            prompt_logprobs=message.prompt_logprobs,
            at_once=message.at_once,
        )
        self._submitted += 1
        self._by_request[sequence.request] = sequence
        refusal = self._refusal(sequence)
        if refusal is not None:
            self._finish_unadmitted(sequence, Finish.FAILED, refusal)
            return
        self._waiting.append(sequence)

    def _refusal(self, sequence: Sequence) -> str | None:
        if sequence.num_tokens == 0 or sequence.max_len <= sequence.num_tokens:
            return "a request needs a prompt and room for at least one token"
        if sequence.max_len > min(self._table.tokens.shape[1], self._pools.max_tokens):
            return f"{sequence.max_len} tokens do not fit the engine's KV pools"
        if len(sequence.stop_ids) > MAX_STOP_IDS:
            return f"a request may have at most {MAX_STOP_IDS} stop ids"
        return None

    def close(self, request: int) -> Sequence | None:
        """End a request at the front's wish; unknown ones have ended already.

        Returns the sequence if a stage may have it. A caller that gets it back from the stage ends
        it with :meth:`end_now`; otherwise a running one ends with the verdict that it waits for.
        """
        sequence = self._by_request.get(request)
        if sequence is None:
            return None
        if sequence.phase is Phase.WAITING:
            self._waiting.remove(sequence)
            self._finish_unadmitted(sequence, Finish.ABORT)
            return None
        if sequence.phase is Phase.READY:
            self._ready.remove(sequence)
            self.end_now(sequence, Finish.ABORT)
            return None
        self._table.closing[sequence.slot] = True
        return sequence

    def end_now(self, sequence: Sequence, finish: Finish, message: str | None = None) -> None:
        """End an admitted sequence that no stage has, and free its slot."""
        self._emissions.end(sequence, finish, message)
        if sequence.phase is Phase.RUNNING:
            self._running.remove(sequence.slot)
        self._release(sequence)

    def _finish_unadmitted(
        self, sequence: Sequence, finish: Finish, message: str | None = None
    ) -> None:
        self._emissions.end(sequence, finish, message)
        del self._by_request[sequence.request]
        sequence.phase = Phase.FINISHED
        self._counters.ended += 1

    def _release(self, sequence: Sequence) -> None:
        self._vacate(sequence)
        del self._by_request[sequence.request]
        sequence.phase = Phase.FINISHED
        self._counters.ended += 1

    def _vacate(self, sequence: Sequence) -> None:
        self._by_slot[sequence.slot] = None
        self._prefilling.discard(sequence.slot)
        self._kv.vacate(sequence)

    # ------------------------------------------------------------------ admission

    def admit(self, now: int) -> list[Sequence]:
        """Give slots and blocks to waiting requests, first come first served.

        The order is strict: a large request is not overtaken by smaller ones, so it cannot starve.
        No more are admitted than keep the prefill stage busy, since later ones may find more in the
        prefix cache; and each leaves a block for every sequence that is decoding. The
        sequences returned belong to the prefill stage until it returns them.
        """
        admitted: list[Sequence] = []
        backlog = self._backlog() if self._waiting else 0
        while self._waiting and backlog < self._prefill_backlog:
            sequence = self._waiting[0]
            if self._prefilling and any(map(self._is_suspect, (sequence, *self._prompts()))):
                break  # a suspect is prefilled alone
            spare = len(self._running) + len(self._ready)
            sequence.fills_draft = self._drafts.fills(sequence)
            if not self._kv.admit(sequence, 1 + self._drafts.controller.max_length, spare):
                break
            self._waiting.popleft()
            slot = sequence.slot
            self._drafts.controller.forget(slot)
            if self._ngrams is not None:
                self._ngrams.forget(slot)
            if sequence.admissions == 1:
                sequence.queued_ns = now - sequence.submitted_ns
                self._table.queued_ns[slot] = sequence.queued_ns
                self._counters.admitted += 1
            sequence.phase = Phase.PREFILLING
            self._by_slot[slot] = sequence
            self._prefilling.add(slot)
            backlog += int(self._table.num_prompt[slot] - self._table.target_len[slot])
            if self._prefill_is_here:
                sequence.timeline.enter(_PREFILL_INBOX, now)
            admitted.append(sequence)
        return admitted

    def _prompts(self) -> list[Sequence]:
        return [sequence for slot in self._prefilling if (sequence := self._by_slot[slot])]

    def _is_suspect(self, sequence: Sequence) -> bool:
        return sequence.prefill_deaths >= DEATHS_BEFORE_ALONE

    def _backlog(self) -> int:
        """Tokens that the prefill stage has still to compute."""
        slots = list(self._prefilling)
        return int((self._table.num_prompt[slots] - self._table.target_len[slots]).sum())

    def prefilled(self, result: Prefilled, now: int) -> None:
        """Note what the prefill stage has computed, and take the sequences over whose prompts are
        complete, each with its next token."""
        table = self._table
        drafted = np.where(table.fills_draft[result.computed], result.lengths, 0)
        table.target_len[result.computed] += result.lengths
        table.draft_len[result.computed] += drafted
        self._counters.prefill_forwards += 1
        self._counters.prefill_tokens += int(result.lengths.sum())
        self._counters.draft_prefill_forwards += int(drafted.any())
        for sequence in self.sequences(result.computed):
            self._kv.publish(sequence)
        for chunk in result.prompt_logprobs:
            rows = np.full(len(chunk.logprobs.chosen), self._table.prompt_logprobs[chunk.slot])
            message = PromptLogprobs(
                request=int(self._table.request[chunk.slot]),
                start=chunk.start,
                logprobs=logprob_columns(chunk.logprobs, rows),
            )
            self._emissions.prompt_logprobs(message)
        if len(result.slots) == 0:
            return
        sequences = self.sequences(result.slots)
        self._prefilling.difference_update(result.slots.tolist())
        zeros = np.zeros(len(result.slots), np.int64)
        first = _Outcome(result.next_ids[:, None], zeros + 1, zeros, zeros, result.logprobs)
        self._commit(result.slots, first, now, at_once=True)
        for sequence in sequences:
            if sequence.phase is not Phase.FINISHED:
                sequence.phase = Phase.READY
                sequence.prefill_deaths = 0
                sequence.timeline.enter(_BATCH_QUEUE, now)
                self._ready.append(sequence)

    # ------------------------------------------------------------------ lanes that died

    def blame(self, slots: Iterable[int], stage: str) -> None:
        """A lane died while it worked on ``slots``.

        One that is in that record at two deaths of a draft lane does without drafts from now on,
        which changes none of its tokens. One that is in it at two deaths of a prefill lane is
        prefilled alone, and at the third it fails.
        """
        for slot in slots:
            sequence = self._by_slot[slot]
            if sequence is None:
                continue
            if stage == "prefill":
                sequence.prefill_deaths += 1
                continue
            sequence.draft_deaths += 1
            if sequence.draft_deaths >= DEATHS_BEFORE_ALONE:
                sequence.params = replace(sequence.params, speculate=False)
                self._table.speculates[slot] = False

    def requeue_prefilling(self, now: int) -> None:
        """The prefill stage has lost what it had: its sequences wait again, before all others, and
        keep what of them was computed if it may be shared."""
        for sequence in sorted(self._prompts(), key=lambda item: item.age, reverse=True):
            if self._table.closing[sequence.slot]:
                self.end_now(sequence, Finish.ABORT)
            elif sequence.prefill_deaths >= DEATHS_BEFORE_FAILURE:
                text = f"the prefill process died {sequence.prefill_deaths} times of this request"
                self.end_now(sequence, Finish.CONDEMNED, text)
            else:
                self._vacate(sequence)
                sequence.phase = Phase.WAITING
                sequence.timeline.enter(_RESTART, now)
                self._waiting.appendleft(sequence)

    # ------------------------------------------------------------------ draft-ahead

    @property
    def num_lingering(self) -> int:
        """Slots that nobody owns but a draft lane that writes ahead."""
        return self._kv.num_lingering

    def halted(self, going_on: Slots) -> None:
        """The draft lane writes ahead to the slots ``going_on`` only; others can be used again."""
        self._kv.halted(going_on)

    # ------------------------------------------------------------------ the decode cycle

    def start_cycle(self, now: int, drafting: Drafting = Drafting.HERE, group: int = 0) -> Cycle:
        """Fill the batch of a group from ``ready`` and hand all of it to the draft and verify
        stages.

        ``drafting``: which draft stage there is at present. A sequence may draft at most what
        it can still emit besides the verifier's own token. Those that have no room for it wait for
        a prefill to end, or are pre-empted.
        """
        while self._may_join and self._is_smallest(group):
            sequence = self._ready.popleft()
            sequence.phase = Phase.RUNNING
            self._table.group[sequence.slot] = group
            self._running.append(sequence.slot)
        table = self._table
        slots = np.array(sorted(self._members(group)), np.int64)
        base = table.committed[slots]
        lengths, looked_up = self._drafts.lengths(slots, base, drafting, len(self._ready))
        if np.any(base + lengths > table.room[slots]):
            granted = self._make_room(slots, base + lengths, now)
            slots, base, lengths = slots[granted], base[granted], lengths[granted]
            if len(slots) == 0:
                return Cycle(None, None)
            looked_up = looked_up[granted, : int(lengths.max())]
        table.in_flight[slots] = True
        if self._ngrams is not None:
            enter_all(self.sequences(slots), _VERIFY_INBOX, now)
            ids = np.where(np.arange(looked_up.shape[1]) < lengths[:, None], looked_up, -1)
            return Cycle(None, Proposal(slots, base, lengths, ids))
        drafts = lengths > 0
        order = plain = None
        if drafts.any():
            self._cycle += 1
            to_lane = drafting is Drafting.IN_LANE
            order = draft_order(
                table, self._cycle, slots[drafts], base[drafts], lengths[drafts], to_lane
            )
            if not to_lane:
                enter_all(self.sequences(order.slots), _DRAFT_INBOX, now)
        if not drafts.all():
            rest = slots[~drafts]
            none = np.zeros((len(rest), 0), np.int64)
            plain = Proposal(rest, base[~drafts], lengths[~drafts], none)
            enter_all(self.sequences(rest), _VERIFY_INBOX, now)
        return Cycle(order, plain)

    def _make_room(self, slots: Slots, wanted: Slots, now: int) -> Slots:
        """Let slots grow to ``wanted`` tokens, the oldest first. Returns the indices of those that
        have their room and are still running."""
        short = np.flatnonzero(wanted > self._table.room[slots]).tolist()
        short.sort(key=lambda index: self._age(int(slots[index])))
        stalled = set()
        table = self._table
        for index in short:
            sequence = self._by_slot[slots[index]]
            while sequence is not None and not self._kv.grow(sequence.slot, int(wanted[index])):
                youngest = max(filter(None, self._by_slot), key=lambda item: item.age)
                a_stage_has_it = (
                    youngest.phase is Phase.PREFILLING or table.in_flight[youngest.slot]
                )
                if a_stage_has_it or self._kv.num_lingering:
                    # What a stage has can be taken when it is handed back.
                    sequence.timeline.enter(_BATCH_QUEUE, now)
                    stalled.add(index)
                    break
                self._preempt(youngest, now)
                sequence = self._by_slot[slots[index]]
        granted = [
            index
            for index, slot in enumerate(slots.tolist())
            if index not in stalled and self._by_slot[slot] is not None
        ]
        return np.array(granted, np.int64)

    def _age(self, slot: int) -> int:
        sequence = self._by_slot[slot]
        return -1 if sequence is None else sequence.age

    def _preempt(self, sequence: Sequence, now: int) -> None:
        """Take a sequence's slot, which no stage may have; it waits before all that wait, since
        whoever was never admitted is younger. One that is to end does so."""
        slot = sequence.slot
        if self._table.closing[slot]:
            self.end_now(sequence, Finish.ABORT)
            return
        if sequence.phase is Phase.READY:
            self._ready.remove(sequence)
        else:
            self._running.remove(slot)
        sequence.token_ids = self._table.tokens[slot, : self._table.committed[slot]].copy()
        sequence.prompt_logprobs = -1
        self._vacate(sequence)
        sequence.phase = Phase.WAITING
        sequence.timeline.enter(_PREEMPTED, now)
        self._waiting.appendleft(sequence)
        self._counters.preemptions += 1

    def verified(self, verdict: Verdict, now: int) -> None:
        """Commit what the verifier accepted and its own token after it.

        What survives waits for the next cycle from ``now`` on.
        """
        proposal = verdict.proposal
        self._table.in_flight[proposal.slots] = False
        width = proposal.ids.shape[1]
        # The last draft token was never fed, so after a full acceptance the draft's cache lacks it.
        drafted = np.flatnonzero(proposal.lengths)
        if self._ngrams is None:
            kept = np.minimum(proposal.lengths - 1, verdict.accepted)
            self._table.draft_len[proposal.slots[drafted]] = (proposal.base + kept)[drafted]
            self._counters.draft_forwards += width
        emitted = np.full((len(proposal.slots), width + 1), -1, np.int64)
        emitted[:, :width] = proposal.ids
        emitted[np.arange(len(emitted)), verdict.accepted] = verdict.next_ids
        self._counters.verify_cycles += len(drafted)
        self._counters.drafted_tokens += total(proposal.lengths)
        self._counters.accepted_tokens += total(verdict.accepted)
        self._drafts.controller.judged(proposal.slots, proposal.lengths, verdict.accepted)
        outcome = _Outcome(
            emitted, verdict.accepted + 1, proposal.lengths, verdict.accepted, verdict.logprobs
        )
        self._commit(proposal.slots, outcome, now)
        self._running = [slot for slot in self._running if self._by_slot[slot] is not None]
        for sequence in self.sequences(proposal.slots):
            if not sequence.params.speculate or self._ngrams is not None:
                sequence.timeline.enter(_VERIFY_INBOX, now)
            elif self._draft_is_here:
                sequence.timeline.enter(_DRAFT_INBOX, now)

    def _commit(self, slots: Slots, outcome: _Outcome, now: int, at_once: bool = False) -> None:
        """Append what was emitted to every slot, cut at stops and max_len, and tell the front:
        ``at_once``, or when some request wants that or ends."""
        table, emitted, counts = self._table, outcome.emitted, outcome.counts
        base = table.committed[slots]
        columns = np.arange(emitted.shape[1])
        used = columns < counts[:, None]
        stops = (emitted[:, :, None] == table.stop_ids[slots][:, None, :]).any(axis=2) & used
        stopped, closing = stops.any(axis=1), table.closing[slots]
        counts = np.where(stopped, stops.argmax(axis=1) + 1, counts)
        full = base + counts >= table.max_len[slots]
        ended = np.flatnonzero(stopped | full | closing)
        finish = np.zeros(len(slots), np.int32)
        stop_ids = np.full(len(slots), -1, np.int32)
        if len(ended):
            finish[full] = Finish.LENGTH
            finish[stopped] = Finish.STOP
            finish[closing] = Finish.ABORT
            counts = np.where(closing, 0, counts)
            stop = np.flatnonzero(finish == Finish.STOP)
            stop_ids[stop] = emitted[stop, counts[stop] - 1]
            used = columns < counts[:, None]

        ids = emitted[used].astype(np.int32)
        rows = np.repeat(slots, counts)
        table.tokens[rows, (base[:, None] + columns)[used]] = ids
        table.committed[slots] = base + counts
        self._counters.generated_tokens += len(ids)
        message = Tokens(
            requests=table.request[slots],
            queued_ns=table.queued_ns[slots],
            counts=counts.astype(np.int32),
            drafted=outcome.drafted.astype(np.int32),
            accepted=outcome.accepted.astype(np.int32),
            finish=finish,
            stop_ids=stop_ids,
            cached=table.cached[slots].astype(np.int32),
            ids=ids,
            emitted_ns=now,
        )
        widths, logprobs = table.logprobs[slots], outcome.logprobs
        if logprobs is not None:
            some = TokenLogprobs(logprobs.chosen[used], logprobs.top_ids[used], logprobs.top[used])
            message.logprobs = logprob_columns(some, np.repeat(widths, counts))
        at_once = at_once or bool(len(ended)) or bool(table.at_once[slots].any())
        self._emissions.tokens(message, self._reporting(slots), at_once)
        for slot in slots[ended].tolist():
            sequence = self._by_slot[slot]
            if sequence is not None:
                self._release(sequence)

    # ------------------------------------------------------------------ what the front is told

    def _reporting(self, slots: Slots) -> list[tuple[int, Timeline]]:
        return [
            (int(entry), sequence.timeline)
            for entry in np.flatnonzero(self._table.reports[slots])
            if (sequence := self._by_slot[slots[entry]])
        ]

    def take_emissions(self, encode_ns: int) -> list[Tokens | PromptLogprobs]:
        """What is to be sent to the front, timelines closed at ``encode_ns``."""
        return self._emissions.take(encode_ns)

    # ------------------------------------------------------------------ checks

    def check(self) -> None:
        """Raise RuntimeError unless every KV length and every block is as it must be."""
        self._pools.check()
        table = self._table
        for slot in self._running:
            committed, target = int(table.committed[slot]), int(table.target_len[slot])
            draft = int(table.draft_len[slot])
            if target != committed - 1:
                raise RuntimeError(f"slot {slot}: {committed} tokens, but {target} verifier rows")
            if draft > committed - 1:
                raise RuntimeError(f"slot {slot}: {committed} tokens, but {draft} draft rows")
            if target > table.room[slot]:
                raise RuntimeError(f"slot {slot}: {target} rows, room for {table.room[slot]}")
        owned = {slot for slot, sequence in enumerate(self._by_slot) if sequence is not None}
        if len(owned) + self._kv.num_lingering != self._pools.slots_in_use:
            raise RuntimeError(f"{self._pools.slots_in_use} slots in use, {len(owned)} owned")
        if not self.num_open and not self._kv.num_lingering and self._pools.blocks_in_use:
            raise RuntimeError(f"{self._pools.blocks_in_use} blocks leaked")
