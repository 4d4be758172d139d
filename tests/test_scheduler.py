"""The scheduler with random verdicts in place of models: nothing is lost, late or done twice."""

from __future__ import annotations

import time

import numpy as np
from engine_driver import Request, Result, open_message
from hypothesis import given, settings
from hypothesis import strategies as st

from pdv_mp.config import SchedulingOptions, SpeculationOptions
from pdv_mp.counters import Counters
from pdv_mp.pools import Pools
from pdv_mp.scheduler import Scheduler
from pdv_mp.sequences import Phase, SequenceTable
from pdv_mp.stages.messages import Prefilled, Proposal, Verdict
from pdv_mp.timeline import STATES, Timeline
from pdv_mp.wire.engine import Finish

VOCABULARY = 6
MAX_LEN = 40


class Rig:
    """A scheduler whose stages answer at random."""

    def __init__(self, rng: np.random.Generator, max_num_seqs: int, draft_length: int) -> None:
        self.rng = rng
        scheduling = SchedulingOptions(max_num_seqs=max_num_seqs, queue_factor=1.5)
        self.max_num_seqs = max_num_seqs
        self.draft_length = draft_length
        self.table = SequenceTable(scheduling.max_admitted, MAX_LEN)
        self.pools = Pools(
            scheduling.max_admitted, num_blocks=16, block_size=4, caches=[], budget_bytes=0
        )
        self.counters = Counters()
        self.scheduler = Scheduler(
            self.table,
            self.pools,
            scheduling,
            SpeculationOptions(num_speculative_tokens=draft_length),
            self.counters,
            can_draft=True,
        )
        self.prefilling: list[int] = []
        self.admitted: list[int] = []
        self.proposal: Proposal | None = None
        self.results: dict[int, Result] = {}

    def submit(self, key: int, request: Request) -> None:
        self.results[key] = Result()
        self.scheduler.submit(open_message(key, request, report_timeline=True))

    def tokens(self, count: int) -> np.ndarray:
        return self.rng.integers(0, VOCABULARY, count)

    def step(self) -> None:
        now = time.monotonic_ns()
        for sequence in self.scheduler.admit(now):
            self.prefilling.append(sequence.slot)
            self.admitted.append(sequence.request)
        if self.proposal is not None:
            self.verify()
        elif self.prefilling and self.rng.random() < 0.5:
            count = int(self.rng.integers(1, len(self.prefilling) + 1))
            done, self.prefilling = self.prefilling[:count], self.prefilling[count:]
            slots = np.array(done, np.int64)
            self.table.target_len[slots] = self.table.num_prompt[slots]
            self.table.draft_len[slots] = self.table.num_prompt[slots]
            self.scheduler.prefilled(Prefilled(slots, self.tokens(len(done))), now)
        elif self.scheduler.has_cycle:
            self.draft()
        if self.proposal is None:
            self.scheduler.check()
        self.collect()

    def draft(self) -> None:
        cycle = self.scheduler.start_cycle(time.monotonic_ns())
        assert 1 <= self.scheduler.num_running <= self.max_num_seqs
        slots, base, lengths = [], [], []
        for part in (cycle.drafts, cycle.plain):
            if part is not None:
                slots += part.slots.tolist()
                base += part.base.tolist()
                lengths += part.lengths.tolist()
        assert len(slots) == len(set(slots)) == self.scheduler.num_running
        for slot, start, length in zip(slots, base, lengths, strict=True):
            room = int(self.table.max_len[slot]) - start - 1
            wanted = self.draft_length if self.table.speculates[slot] else 0
            assert length == min(wanted, room)
            assert start == self.table.committed[slot]
        ids = np.full((len(slots), max(lengths)), -1, np.int64)
        for row, length in enumerate(lengths):
            ids[row, :length] = self.tokens(length)
            if length:
                self.table.draft_len[slots[row]] = base[row] + length - 1
        self.proposal = Proposal(
            np.array(slots, np.int64), np.array(base, np.int64), np.array(lengths, np.int64), ids
        )

    def verify(self) -> None:
        proposal, self.proposal = self.proposal, None
        assert proposal is not None
        accepted = self.rng.integers(0, proposal.lengths + 1)
        verdict = Verdict(proposal, accepted, self.tokens(len(accepted)))
        self.table.target_len[proposal.slots] = proposal.base + accepted
        self.table.draft_len[proposal.slots] = np.minimum(
            self.table.draft_len[proposal.slots], proposal.base + accepted
        )
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
)
def test_every_request_ends_once_and_nothing_leaks(
    seed: int, max_num_seqs: int, draft_length: int, cancels: bool
) -> None:
    rng = np.random.default_rng(seed)
    rig = Rig(rng, max_num_seqs, draft_length)
    requests: dict[int, Request] = {}
    cancelled: set[int] = set()
    while len(requests) < 25 or rig.scheduler.num_open:
        if len(requests) < 25 and rng.random() < 0.4:
            prompt = tuple(rig.tokens(int(rng.integers(1, 20))).tolist())
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
        rig.step()
    assert rig.pools.blocks_in_use == 0
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
    rig.submit(0, Request(prompt=(1,) * 10, max_tokens=30))
    rig.submit(1, Request(prompt=(1,) * 10, max_tokens=30))
    rig.submit(2, Request(prompt=(1,), max_tokens=1))
    rig.step()
    assert rig.admitted == [0]


def test_what_can_never_fit_is_refused_by_name() -> None:
    rig = Rig(np.random.default_rng(0), max_num_seqs=1, draft_length=2)
    rig.results[0] = Result()
    rig.scheduler.submit(open_message(0, Request(prompt=(1,) * 30, max_tokens=30)))
    (message,) = rig.scheduler.take_emissions(0)
    assert message.finish.tolist() == [Finish.FAILED]
    assert "60 tokens do not fit" in message.messages[0][1]
    assert rig.scheduler.num_open == 0
