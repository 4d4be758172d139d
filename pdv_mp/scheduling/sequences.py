"""The state of the sequences in an engine: columns by slot, and one small object per request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from pdv_mp.sampling_params import SamplingParams
from pdv_mp.scheduling.columns import ragged_range
from pdv_mp.speculation.sampling import SamplingTable
from pdv_mp.timeline import Timeline

MAX_STOP_IDS = 32
"""Most stop ids of one sequence: those of the request, and the model's end-of-sequence ids."""

Slots = npt.NDArray[np.int64]
"""Slot numbers, one per entry of a batch; ascending in the batches of draft and verify."""


class Phase(IntEnum):
    """Where a sequence is in its life."""

    WAITING = 0
    PREFILLING = 1
    READY = 2
    RUNNING = 3
    FINISHED = 4


@dataclass(slots=True, eq=False)
class Sequence:
    """One request as its scheduler sees it; its numbers are columns of :class:`SequenceTable`.

    ``token_ids``: what is to be computed at admission: the prompt, and after a pre-emption the
    output so far as well. ``budget``: tokens that it may get in all. ``age``: requests with lower
    numbers came first. ``digests``: names of the whole blocks of the text, as far as they were
    needed. ``prefill_deaths``, ``draft_deaths``: how often such a lane has died while it worked on
    this request. ``fills_draft``: its prompt goes into the draft's cache as well; otherwise that
    lacks it until something is drafted.
    ``slot`` is -1 while it has none; it belongs to the scheduler's pools.
    """

    request: int
    token_ids: npt.NDArray[np.int32]
    max_len: int
    budget: int
    params: SamplingParams
    seed: int
    stop_ids: tuple[int, ...]
    report_timeline: bool
    timeline: Timeline
    submitted_ns: int
    age: int
    logprobs: int = -1
    prompt_logprobs: int = -1
    at_once: bool = True
    queued_ns: int = 0
    cached: int = 0
    admissions: int = 0
    prefill_deaths: int = 0
    draft_deaths: int = 0
    fills_draft: bool = True
    digests: list[bytes] = field(default_factory=list)
    slot: int = -1
    phase: Phase = Phase.WAITING

    @property
    def num_tokens(self) -> int:
        """Tokens to be computed at admission."""
        return len(self.token_ids)


class SequenceTable:
    """What the stages of a worker know of the sequences, in columns indexed by slot.

    Invariants between cycles, for a running slot with ``committed`` = L (prompt + emitted tokens):
    the verifier's cache holds exactly L - 1 rows (``target_len``), the draft's at most L - 1
    (``draft_len``). Rows above these lengths are stale and are overwritten before they are read.
    ``fills_draft`` marks a slot whose prompt goes into the draft's cache as well.
    ``num_prompt``: tokens to prefill: the prompt, and after a pre-emption the output so far too.
    ``budget``: tokens that it may get, those that it has included.
    ``room``: tokens for which the slot has KV blocks. ``cached``: prompt tokens that came from the
    prefix cache at first admission.
    ``reports`` marks a slot whose timeline goes to the front with every token, ``at_once`` one
    whose tokens somebody waits for.
    ``logprobs``, ``prompt_logprobs``: alternatives to report beside each token, -1 for no report.
    ``closing`` marks a slot whose sequence ends as soon as the stage that has it hands it back.
    ``group``: which of the groups that take turns it belongs to. ``in_flight``: its cycle has
    begun and its verdict is still to come.
    ``ahead``: a draft lane may go on writing to the slot until it says that it has stopped.
    ``known_to_draft``: the draft stage has been told the slot's sampling parameters.
    """

    def __init__(self, num_slots: int, max_model_len: int) -> None:
        self.tokens = np.zeros((num_slots, max_model_len), np.int32)
        self.request = np.full(num_slots, -1, np.int64)
        self.num_prompt = np.zeros(num_slots, np.int64)
        self.max_len = np.zeros(num_slots, np.int64)
        self.budget = np.zeros(num_slots, np.int64)
        self.room = np.zeros(num_slots, np.int64)
        self.cached = np.zeros(num_slots, np.int64)
        self.queued_ns = np.zeros(num_slots, np.int64)
        self.committed = np.zeros(num_slots, np.int64)
        self.target_len = np.zeros(num_slots, np.int64)
        self.draft_len = np.zeros(num_slots, np.int64)
        self.speculates = np.zeros(num_slots, np.bool_)
        self.fills_draft = np.zeros(num_slots, np.bool_)
        self.reports = np.zeros(num_slots, np.bool_)
        self.at_once = np.zeros(num_slots, np.bool_)
        self.closing = np.zeros(num_slots, np.bool_)
        self.known_to_draft = np.zeros(num_slots, np.bool_)
        self.group = np.zeros(num_slots, np.int64)
        self.in_flight = np.zeros(num_slots, np.bool_)
        self.ahead = np.zeros(num_slots, np.bool_)
        self.logprobs = np.full(num_slots, -1, np.int64)
        self.prompt_logprobs = np.full(num_slots, -1, np.int64)
        self.stop_ids = np.full((num_slots, MAX_STOP_IDS), -1, np.int32)
        self.sampling = SamplingTable(num_slots)

    @property
    def num_slots(self) -> int:
        """Slots in the table."""
        return len(self.request)

    def fill(self, sequence: Sequence, num_cached: int, room: int) -> None:
        """Write a newly admitted sequence's columns; its caches hold ``num_cached`` tokens."""
        slot = sequence.slot
        self.tokens[slot, : sequence.num_tokens] = sequence.token_ids
        self.request[slot] = sequence.request
        self.num_prompt[slot] = sequence.num_tokens
        self.room[slot] = room
        self.cached[slot] = sequence.cached
        self.max_len[slot] = sequence.max_len
        self.budget[slot] = sequence.budget
        self.queued_ns[slot] = sequence.queued_ns
        self.committed[slot] = sequence.num_tokens
        self.target_len[slot] = num_cached
        self.draft_len[slot] = num_cached if sequence.fills_draft else 0
        self.speculates[slot] = sequence.params.speculate
        self.fills_draft[slot] = sequence.fills_draft
        self.reports[slot] = sequence.report_timeline
        self.at_once[slot] = sequence.at_once
        self.closing[slot] = False
        self.known_to_draft[slot] = False
        self.in_flight[slot] = False
        self.logprobs[slot] = sequence.logprobs
        self.prompt_logprobs[slot] = sequence.prompt_logprobs
        self.stop_ids[slot] = -1
        self.stop_ids[slot, : len(sequence.stop_ids)] = sequence.stop_ids
        self.sampling.set(slot, sequence.params, sequence.seed)

    def clear(self, slot: int) -> None:
        """Forget a slot that is going back to its pool."""
        self.request[slot] = -1
        self.room[slot] = 0
        self.fills_draft[slot] = False
        self.committed[slot] = self.target_len[slot] = self.draft_len[slot] = 0

    def ragged_tokens(
        self, slots: Slots, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        """Tokens ``starts[b] .. starts[b] + lengths[b]`` of every slot, flattened."""
        tokens: npt.NDArray[np.int32] = self.tokens[
            np.repeat(slots, lengths), ragged_range(starts, lengths)
        ]
        return tokens


def enter_all(sequences: Iterable[Sequence], state: int, now: int) -> None:
    """Stamp one change of state for many sequences."""
    for sequence in sequences:
        sequence.timeline.enter(state, now)
