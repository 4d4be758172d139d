"""The scheduler with random verdicts in place of models: nothing is lost, late or done twice."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from engine_driver import Request, Result, open_message
from hypothesis import given, settings
from hypothesis import strategies as st
from random_lengths import RandomLengths

from pdv_mp.config import SchedulingOptions
from pdv_mp.scheduling.counters import Counters
from pdv_mp.scheduling.draft_plan import NEAR
from pdv_mp.scheduling.pools import Pools
from pdv_mp.scheduling.scheduler import Scheduler
from pdv_mp.scheduling.sequences import Phase, Sequence, SequenceTable
from pdv_mp.speculation.draft_length.controller import DraftLengthController
from pdv_mp.speculation.draft_length.fixed import FixedLength
from pdv_mp.speculation.ngram import NGramIndex
from pdv_mp.stages.messages import Prefilled, Proposal, Verdict
from pdv_mp.timeline import STATES, Timeline, state_index
from pdv_mp.wire.engine import Finish
from pdv_mp.wire.frames import Stamps

VOCABULARY = 6
MAX_LEN = 40


class Rig:
    """A scheduler whose stages answer at random."""

    def __init__(
        self,
        rng: np.random.Generator,
        max_num_seqs: int,
        draft_length: int,
        prefix_caching: bool = False,
        max_num_batched_tokens: int = 512,
        random_lengths: bool = False,
        looks_up: bool = False,
        lanes: tuple[str, ...] = (),
    ) -> None:
        self.rng = rng
        scheduling = SchedulingOptions(
            max_num_seqs=max_num_seqs,
            queue_factor=1.5,
            max_num_batched_tokens=max_num_batched_tokens,
        )
        self.max_num_seqs = max_num_seqs
        self.draft_length = draft_length
        self.table = SequenceTable(scheduling.max_admitted, MAX_LEN)
        self.pools = Pools(
            scheduling.max_admitted, num_blocks=16, block_size=4, caches=[], budget_bytes=0
        )
        self.counters = Counters()
        self.random_lengths = random_lengths or looks_up
        controller: DraftLengthController = FixedLength(draft_length, scheduling.max_admitted)
        if random_lengths:
            controller = RandomLengths(draft_length, rng)
        self.scheduler = Scheduler(
            self.table,
            self.pools,
            scheduling,
            controller,
            self.counters,
            prefix_caching=prefix_caching,
            prefill_backlog=max_num_batched_tokens,
            lanes=lanes,
            ngrams=NGramIndex(scheduling.max_admitted, 1, 3) if looks_up else None,
        )
        self.prefilling: list[int] = []
        self.admitted: list[int] = []
        self.proposal: Proposal | None = None
        self.results: dict[int, Result] = {}
        self.requests: dict[int, Request] = {}

    def submit(self, key: int, request: Request) -> None:
        self.results[key] = Result()
        self.requests[key] = request
        self.scheduler.submit(open_message(key, request, report_timeline=True))

    def tokens(self, count: int) -> np.ndarray:
        return self.rng.integers(0, VOCABULARY, count)

    def step(self) -> None:
        now = time.monotonic_ns()
        for sequence in self.scheduler.admit(now):
            self.prefilling.append(sequence.slot)
            if sequence.admissions == 1:
                self.admitted.append(sequence.request)
            assert self.table.target_len[sequence.slot] < self.table.num_prompt[sequence.slot]
            assert self.table.cached[sequence.slot] <= len(self.requests[sequence.request].prompt)
        if self.proposal is not None:
            self.verify()
        elif self.prefilling and self.rng.random() < 0.5:
            count = int(self.rng.integers(1, len(self.prefilling) + 1))
            done, self.prefilling = self.prefilling[:count], self.prefilling[count:]
            slots = np.array(done, np.int64)
            lengths = self.table.num_prompt[slots] - self.table.target_len[slots]
            self.scheduler.prefilled(Prefilled(slots, self.tokens(len(done)), slots, lengths), now)
        elif self.scheduler.has_cycle:
            self.draft()
        if self.proposal is None:
            self.scheduler.check()
        self.collect()

    def draft(self) -> None:
        cycle = self.scheduler.start_cycle(time.monotonic_ns())
        assert self.scheduler.num_running <= self.max_num_seqs
        slots, base, lengths = [], [], []
        for part in (cycle.drafts, cycle.plain):
            if part is not None:
                slots += part.slots.tolist()
                base += part.base.tolist()
                lengths += part.lengths.tolist()
            if isinstance(part, Proposal):
                drafted = np.arange(part.ids.shape[1]) < part.lengths[:, None]
                assert ((part.ids >= 0) == drafted).all()
        assert len(slots) == len(set(slots))
        # Whoever is left out waits for the KV that a prefill holds.
        assert len(slots) == self.scheduler.num_running or self.prefilling
        if not slots:
            return
        for slot, start, length in zip(slots, base, lengths, strict=True):
            room = int(self.table.max_len[slot]) - start - 1
            wanted = self.draft_length if self.table.speculates[slot] else 0
            assert length <= min(wanted, room)
            assert self.random_lengths or length == min(wanted, room)
            assert start == self.table.committed[slot]
            assert start + length <= self.pools.room(slot)
        ids = np.full((len(slots), max(lengths)), -1, np.int64)
        for row, length in enumerate(lengths):
            ids[row, :length] = self.tokens(length)
        self.proposal = Proposal(
            np.array(slots, np.int64), np.array(base, np.int64), np.array(lengths, np.int64), ids
        )

    def prefill_dies(self, working_on: list[int]) -> None:
        """A prefill lane is gone, with all that it had."""
        self.scheduler.blame(working_on, "prefill")
        self.prefilling.clear()
        self.scheduler.requeue_prefilling(time.monotonic_ns())
        self.collect()

    def verify(self) -> None:
        proposal, self.proposal = self.proposal, None
        assert proposal is not None
        accepted = self.rng.integers(0, proposal.lengths + 1)
        verdict = Verdict(proposal, accepted, self.tokens(len(accepted)))
        self.table.target_len[proposal.slots] = proposal.base + accepted
        self.scheduler.verified(verdict, time.monotonic_ns())

    def collect(self) -> None:
        for message in self.scheduler.take_emissions(time.monotonic_ns()):
            offset = 0
            for entry, key in enumerate(message.requests.tolist()):
                result = self.results[key]
                assert result.terminals == 0, "something follows the end of a request"
                count = int(message.counts[entry])
                result.ids += message.ids[offset : offset + count].tolist()
                offset += count
                result.finish = Finish(int(message.finish[entry]))
                result.terminals += result.finish is not Finish.NONE
            for entry, packed in message.timelines:
                report = Timeline.unpack(packed).report(time.monotonic_ns())
                assert sum(s["ns"] for s in report["states"].values()) == report["e2e_ns"]
                assert set(report["states"]) <= set(STATES)
                assert message.requests[entry] in self.results


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    max_num_seqs=st.integers(1, 4),
    draft_length=st.integers(0, 5),
    cancels=st.booleans(),
    deaths=st.booleans(),
    prefix_caching=st.booleans(),
    max_num_batched_tokens=st.integers(1, 40),
    random_lengths=st.booleans(),
    looks_up=st.booleans(),
)
def test_every_request_ends_once_and_nothing_leaks(
    seed: int,
    max_num_seqs: int,
    draft_length: int,
    cancels: bool,
    deaths: bool,
    prefix_caching: bool,
    max_num_batched_tokens: int,
    random_lengths: bool,
    looks_up: bool,
) -> None:
    rng = np.random.default_rng(seed)
    rig = Rig(
        rng,
        max_num_seqs,
        draft_length,
        prefix_caching,
        max_num_batched_tokens,
        random_lengths,
        looks_up,
    )
    beginning = tuple(rig.tokens(int(rng.integers(1, 20))).tolist())
    requests: dict[int, Request] = {}
    cancelled: set[int] = set()
    while len(requests) < 25 or rig.scheduler.num_open:
        if len(requests) < 25 and rng.random() < 0.4:
            prompt = tuple(rig.tokens(int(rng.integers(1, 20))).tolist())
            if rng.random() < 0.5:
                prompt = beginning[: int(rng.integers(0, 20))] + prompt[:5]
            request = Request(
                prompt=prompt,
                max_tokens=int(rng.integers(1, MAX_LEN - len(prompt) + 1)),
                stop_ids=tuple(rig.tokens(int(rng.integers(0, 2))).tolist()),
                speculate=bool(rng.random() < 0.8),
            )
            requests[len(requests)] = request
            rig.submit(len(requests) - 1, request)
        if cancels and requests and rng.random() < 0.1:
            key = int(rng.integers(0, len(requests)))
            sequence = rig.scheduler.close(key)
            cancelled.add(key)
            if sequence is not None and sequence.phase is Phase.PREFILLING:
                rig.prefilling.remove(sequence.slot)
                rig.scheduler.end_now(sequence, Finish.ABORT)
        if deaths and rng.random() < 0.05:
            rig.prefill_dies([])
        rig.step()
    assert rig.pools.blocks_in_use == 0
    assert rig.pools.blocks_free + rig.pools.blocks_cached == rig.pools.num_blocks
    assert prefix_caching or not rig.pools.blocks_cached
    assert rig.admitted == sorted(rig.admitted), "admission must be first come, first served"
    for key, request in requests.items():
        result = rig.results[key]
        assert result.terminals == 1
        stops = [place for place, token in enumerate(result.ids) if token in request.stop_ids]
        if result.finish is Finish.ABORT:
            assert key in cancelled
            assert not stops
            assert len(result.ids) < request.max_tokens
        elif result.finish is Finish.STOP:
            assert stops == [len(result.ids) - 1]
        else:
            assert result.finish is Finish.LENGTH
            assert not stops
            assert len(result.ids) == request.max_tokens


def test_a_large_request_is_not_overtaken() -> None:
    rig = Rig(np.random.default_rng(0), max_num_seqs=4, draft_length=2)
    rig.submit(0, Request(prompt=(1,) * 35, max_tokens=5))
    rig.submit(1, Request(prompt=(1,) * 35, max_tokens=5))
    rig.submit(2, Request(prompt=(1,), max_tokens=1))
    rig.step()
    assert rig.admitted == [0]


def run_to_end(rig: Rig) -> None:
    while rig.scheduler.num_open:
        rig.step()


def test_the_youngest_gives_way_and_the_oldest_never_does() -> None:
    rig = Rig(np.random.default_rng(1), max_num_seqs=3, draft_length=2)
    preempted: list[int] = []
    preempt = rig.scheduler._preempt

    def watched(sequence: Sequence, now: int) -> None:
        admitted = [other for other in rig.scheduler._by_slot if other is not None]
        assert sequence.age == max(other.age for other in admitted)
        preempted.append(sequence.request)
        preempt(sequence, now)

    rig.scheduler._preempt = watched  # type: ignore[method-assign]
    for key in range(6):
        rig.submit(key, Request(prompt=(1,) * 6, max_tokens=34))
    run_to_end(rig)
    assert len(preempted) == rig.counters.preemptions > 3
    assert 0 not in preempted
    assert rig.counters.admitted == 6
    assert all(len(rig.results[key].ids) == 34 for key in range(6))


def test_a_pre_empted_request_can_be_cancelled() -> None:
    rig = Rig(np.random.default_rng(1), max_num_seqs=3, draft_length=2)
    for key in range(3):
        rig.submit(key, Request(prompt=(1,) * 6, max_tokens=34))
    while not rig.counters.preemptions:
        rig.step()
    assert rig.scheduler.close(2) is None
    rig.collect()
    assert rig.results[2].finish is Finish.ABORT
    run_to_end(rig)
    assert rig.pools.blocks_in_use == 0


def test_a_request_that_kills_prefill_is_tried_alone_and_then_fails() -> None:
    rig = Rig(np.random.default_rng(1), max_num_seqs=4, draft_length=2)
    for key in range(3):
        rig.submit(key, Request(prompt=(1,) * 6, max_tokens=5))
    now = time.monotonic_ns()
    for death, together in enumerate([3, 3, 1]):
        admitted = rig.scheduler.admit(now)
        assert [sequence.request for sequence in admitted] == list(range(together))
        rig.prefill_dies([admitted[0].slot])
        assert rig.results[0].terminals == (death == 2)
    assert rig.results[0].finish is Finish.CONDEMNED
    run_to_end(rig)
    assert [len(rig.results[key].ids) for key in range(3)] == [0, 5, 5]


def test_innocent_bystanders_of_deaths_are_served() -> None:
    rig = Rig(np.random.default_rng(1), max_num_seqs=4, draft_length=2)
    for key in range(3):
        rig.submit(key, Request(prompt=(1,) * 6, max_tokens=5))
    now = time.monotonic_ns()
    for _ in range(2):
        rig.prefill_dies([sequence.slot for sequence in rig.scheduler.admit(now)])
    # Each is suspect now: one by one they are prefilled, and clear themselves.
    rig.step()
    assert rig.scheduler.num_prefilling <= 1
    run_to_end(rig)
    assert all(len(rig.results[key].ids) == 5 for key in range(3))


def test_a_request_that_kills_the_draft_goes_on_without() -> None:
    rig = Rig(np.random.default_rng(1), max_num_seqs=4, draft_length=2)
    rig.submit(0, Request(prompt=(1,) * 6, max_tokens=20))
    while not rig.scheduler.num_running:
        rig.step()
    (sequence,) = rig.scheduler.running_sequences()
    rig.scheduler.blame([sequence.slot], "draft")
    assert rig.table.speculates[sequence.slot]
    rig.scheduler.blame([sequence.slot], "draft")
    assert not rig.table.speculates[sequence.slot]
    run_to_end(rig)
    assert len(rig.results[0].ids) == 20


@pytest.mark.parametrize(
    ("computed_until", "busy", "inbox"), [(0, 0, 50), (900, 0, 50), (1030, 30, 20)]
)
def test_what_a_request_waits_for_while_others_are_computed_is_not_a_handoff(
    computed_until: int, busy: int, inbox: int
) -> None:
    rig = Rig(np.random.default_rng(1), max_num_seqs=1, draft_length=2)
    rig.results[0], rig.requests[0] = Result(), Request(prompt=(1, 2), max_tokens=2)
    message = open_message(0, rig.requests[0], report_timeline=True)
    timeline = Timeline(state_index("front>verify.encode"), 900)
    message.timeline, message.stamps = timeline.pack(), Stamps(900, 950, 970, 1000)
    rig.scheduler.submit(message, 1050, computed_until)
    (sequence,) = rig.scheduler.admit(1060)
    states = sequence.timeline.report(1070)["states"]
    found = [states.get(f"prefill.{what}", {"ns": 0})["ns"] for what in ("busy", "queue")]
    assert found == [busy, 10]
    assert states["prefill.inbox"]["ns"] == inbox + 10
    rig.prefilling.append(sequence.slot)
    run_to_end(rig)


class Silent(FixedLength):
    """Holds 0 to be right until it is told otherwise."""

    right = 0

    @property
    def length(self) -> int:
        return self.right


def filled(rig: Rig, keys: range, speculate: bool = True) -> list[bool]:
    """Whether the prompts of new requests go into the draft's cache."""
    for key in keys:
        rig.submit(key, Request(prompt=(key,) * 3, max_tokens=2, speculate=speculate))
    admitted = rig.scheduler.admit(time.monotonic_ns())
    rig.prefilling += [sequence.slot for sequence in admitted]
    assert [sequence.request for sequence in admitted] == list(keys)
    return [bool(rig.table.fills_draft[sequence.slot]) for sequence in admitted]


def test_while_nothing_is_drafted_the_draft_reads_a_few_prompts() -> None:
    rig = Rig(np.random.default_rng(1), max_num_seqs=8, draft_length=2)
    controller = Silent(2, 16)
    rig.scheduler._drafts.controller = controller
    assert filled(rig, range(2)) == [True] * 2
    assert filled(rig, range(2, 4), speculate=False) == [False] * 2
    assert filled(rig, range(4, 8)) == [True] * 2 + [False] * 2
    run_to_end(rig)
    controller.right = 2
    assert filled(rig, range(8, 14)) == [True] * 6
    run_to_end(rig)
    controller.right = 0
    assert filled(rig, range(14, 20)) == [True] * 4 + [False] * 2
    run_to_end(rig)


def test_seats_of_those_that_the_draft_lags_behind_are_free() -> None:
    rig = Rig(np.random.default_rng(1), max_num_seqs=8, draft_length=2)
    rig.scheduler._drafts.controller = Silent(2, 16)
    assert filled(rig, range(3)) == [True] * 3
    for slot in rig.prefilling:
        rig.table.target_len[slot] = NEAR + 1
    assert filled(rig, range(3, 8)) == [True] * 4 + [False]


def test_where_lanes_hand_kv_on_all_prompts_are_read() -> None:
    rig = Rig(np.random.default_rng(1), max_num_seqs=8, draft_length=2, lanes=("draft",))
    rig.scheduler._drafts.controller = Silent(2, 16)
    assert filled(rig, range(6)) == [True] * 6


def test_a_common_beginning_is_computed_once() -> None:
    rig = Rig(np.random.default_rng(1), max_num_seqs=4, draft_length=2, prefix_caching=True)
    common = (1, 2, 3, 4, 5, 6, 7, 8)
    for key in range(4):
        rig.submit(key, Request(prompt=(*common, 20 + key), max_tokens=2))
    run_to_end(rig)
    # All came at once: the others waited for the first one's blocks.
    assert rig.counters.cached_tokens == 3 * 8
    rig.submit(4, Request(prompt=common, max_tokens=2))
    run_to_end(rig)
    # A token must be left to compute, so the last whole block is computed again.
    assert rig.counters.cached_tokens == 3 * 8 + 4


@pytest.mark.parametrize(("lanes", "found"), [((), 8), (("draft",), 0)])
def test_what_the_verifier_alone_has_is_taken_where_the_draft_can_catch_up(
    lanes: tuple[str, ...], found: int
) -> None:
    rig = Rig(
        np.random.default_rng(1), max_num_seqs=4, draft_length=2, prefix_caching=True, lanes=lanes
    )
    common = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    for key, (speculate, cached) in enumerate([(False, 0), (True, found), (True, 8), (False, 8)]):
        before = rig.counters.cached_tokens
        rig.submit(key, Request(prompt=common, max_tokens=2, speculate=speculate))
        run_to_end(rig)
        assert rig.counters.cached_tokens - before == cached


def test_the_output_is_kept_for_the_next_turn() -> None:
    rig = Rig(np.random.default_rng(1), max_num_seqs=4, draft_length=0, prefix_caching=True)
    rig.submit(0, Request(prompt=(1, 2, 3), max_tokens=12))
    run_to_end(rig)
    first = (1, 2, 3, *rig.results[0].ids)
    rig.submit(1, Request(prompt=(*first, 9, 9), max_tokens=2))
    run_to_end(rig)
    # The last of the 15 tokens was never fed to the verifier.
    assert rig.counters.cached_tokens == 12


def test_prompt_log_probabilities_do_not_read_the_cache() -> None:
    rig = Rig(np.random.default_rng(1), max_num_seqs=4, draft_length=0, prefix_caching=True)
    for key in range(2):
        rig.results[key] = Result()
        rig.requests[key] = Request(prompt=(1,) * 9, max_tokens=2)
        message = open_message(key, rig.requests[key])
        rig.scheduler.submit(replace(message, prompt_logprobs=0))
        run_to_end(rig)
    assert rig.counters.cached_tokens == 0


def test_what_can_never_fit_is_refused_by_name() -> None:
    rig = Rig(np.random.default_rng(0), max_num_seqs=1, draft_length=2)
    rig.results[0] = Result()
    rig.scheduler.submit(open_message(0, Request(prompt=(1,) * 30, max_tokens=30)))
    (message,) = rig.scheduler.take_emissions(0)
    assert message.finish.tolist() == [Finish.FAILED]
    assert "60 tokens do not fit" in message.messages[0][1]
    assert rig.scheduler.num_open == 0
