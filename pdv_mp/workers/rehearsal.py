"""Cycles on invented texts, before anything is served: their times are what a controller of draft
lengths starts with, so that no request pays for learning what a step costs."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pdv_mp.config import EngineConfig
from pdv_mp.memory.blocks import blocks_for
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.resources.resources import Resources
from pdv_mp.scheduling.counters import Counters
from pdv_mp.scheduling.sequences import SequenceTable
from pdv_mp.speculation.draft_length.controller import CycleTimes
from pdv_mp.speculation.draft_length.make import AUTO
from pdv_mp.speculative_config import ngram_of
from pdv_mp.stages.draft import DraftStage
from pdv_mp.stages.messages import DraftOrder, Proposal
from pdv_mp.stages.verify import VerifyStage
from pdv_mp.topology import scheduling_of
from pdv_mp.workers.device import finish

CONTEXT = 128
"""Tokens of each invented text."""
LENGTHS = (0, 1, 2, 4, 8, 16, 32, 64)
"""Draft lengths that are measured, as far as they are allowed; costs between are interpolated."""
REPEATS = 3
"""Times that a cycle runs, or one less if it is slow; the first may prepare what the others use."""
SLOW_NS = 30_000_000
BUDGET_NS = 3_000_000_000
"""Time after which no larger batch is begun."""
AGAIN_NS = 1_000_000_000
"""Time after which no batch is begun the second time."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """``times``: of cycles of uniform batches. ``read_ns``: of a token of a prompt that the draft
    reads, 0 where this process does not draft."""

    times: tuple[CycleTimes, ...] = ()
    read_ns: float = 0.0


def rehearse(resources: Resources, config: EngineConfig) -> Rehearsed:
    """Run cycles of growing batches through the draft and verify stages of this process and say
    what they took; nothing where the draft length is not chosen by costs.

    Call it before :attr:`Resources.pools` is asked for, which forgets what is left in the caches.
    """
    options = config.speculation
    if options.num_speculative_tokens != AUTO or options.draft_controller != "goodput":
        return Rehearsed()
    if not resources.has_draft and ngram_of(options) is None:
        return Rehearsed()
    stage = _Rehearsal(resources, config)
    began = time.monotonic_ns()
    found: dict[int, list[CycleTimes]] = {}
    for sequences in stage.batches():
        found[sequences] = []
        for length in (n for n in LENGTHS if n <= stage.longest):
            first = stage.cycle(sequences, length)
            repeats = REPEATS - 1 - (first.verify_ns > SLOW_NS)
            runs = [stage.cycle(sequences, length) for _ in range(repeats)]
            found[sequences].append(functools.reduce(_shorter, runs))
        if time.monotonic_ns() - began > BUDGET_NS:
            break
    # What has disturbed the short cycles of a small batch, one after the other, is over now.
    began = time.monotonic_ns()
    for sequences, times in found.items():
        found[sequences] = [
            _shorter(one, stage.cycle(sequences, one.rows // sequences - 1)) for one in times
        ]
        if time.monotonic_ns() - began > AGAIN_NS:
            break
    every = tuple(one for times in found.values() for one in times)
    return Rehearsed(every, stage.read_ns(scheduling_of(config).max_num_batched_tokens))


def _shorter(one: CycleTimes, other: CycleTimes) -> CycleTimes:
    """The same cycle as it was least disturbed."""
    verify_ns = min(one.verify_ns, other.verify_ns)
    return one._replace(verify_ns=verify_ns, draft_ns=min(one.draft_ns, other.draft_ns))


class _Rehearsal:
    """Stages of their own over the caches that will be served from, and a table of texts."""

    def __init__(self, resources: Resources, config: EngineConfig) -> None:
        self._resources = resources
        rule = resources.rule(config)
        self.longest = config.speculation.max_speculative_tokens
        self._context = min(CONTEXT, resources.max_model_len - self.longest - 1)
        most = min(scheduling_of(config).max_num_seqs, resources.num_slots)
        block_size = resources.plan.block_size
        self._blocks = blocks_for(max(1, self._context) + self.longest + 1, block_size)
        self._most = min(most, resources.num_blocks // self._blocks) if self._context > 0 else 0
        self._table = table = SequenceTable(resources.num_slots, resources.max_model_len)
        slots = np.arange(self._most)
        vocab_size = resources.plan.vocab_size
        # Any ids do; these differ from text to text.
        table.tokens[: self._most] = np.random.default_rng(0).integers(
            vocab_size, size=(self._most, table.tokens.shape[1])
        )
        table.committed[slots] = self._context
        table.target_len[slots] = self._context - 1
        table.draft_len[slots] = self._context - 1
        self._verify = VerifyStage(table, resources.target, rule, Counters())
        draft = resources.draft
        self._draft = None if draft is None else DraftStage(draft, rule, resources.num_slots)
        for cache in resources.caches.values():
            if isinstance(cache, PagedKVCache):
                for slot in range(self._most):
                    first = slot * self._blocks
                    cache.set_blocks(slot, range(first, first + self._blocks))

    def batches(self) -> Iterator[int]:
        """1, 2, 4 … and the largest."""
        sequences = 1
        while sequences < self._most:
            yield sequences
            sequences *= 2
        if self._most:
            yield self._most

    def read_ns(self, most: int) -> float:
        """What a token of a prompt costs that the draft reads in a chunk of ``most`` tokens or a
        few less."""
        draft = self._resources.prefill_draft
        sequences = min(self._most, max(1, most // max(1, self._context)))
        if draft is None or not sequences:
            return 0.0
        slots, lengths = np.arange(sequences), np.full(sequences, min(self._context, most))
        chunk = ForwardBatch.build(
            self._table.ragged_tokens(slots, 0 * slots, lengths).astype(np.int64),
            lengths,
            0 * slots,
            slots,
            logit_rows=np.zeros(0, np.int64),
            device=draft.device,
        )
        best = math.inf
        for _ in range(REPEATS):
            began = time.monotonic_ns()
            draft.forward(chunk)
            finish(draft.device)
            best = min(best, time.monotonic_ns() - began)
        return best / chunk.num_rows

    def cycle(self, sequences: int, length: int) -> CycleTimes:
        """Draft and verify once, and forget the outcome."""
        order = self._order(sequences, length)
        drafts, draft_ns = length if self._draft is not None else 0, 0
        began = time.monotonic_ns()
        if self._draft is not None and length:
            self._draft.put(order)
            proposal = self._draft.run(self._draft.form() or order)
            draft_ns = time.monotonic_ns() - began
        else:
            ids = self._table.tokens[:sequences, :length].astype(np.int64)
            proposal = Proposal(order.slots, order.base, order.lengths, ids, None)
        picked = time.monotonic_ns()
        self._verify.put(proposal)
        formed = self._verify.form() or proposal
        self._verify.run(formed)
        ended = time.monotonic_ns()
        self._table.target_len[order.slots] = self._context - 1
        return CycleTimes(
            sequences=sequences,
            rows=sequences * (length + 1),
            context=sequences * self._context,
            verify_ns=ended - picked,
            drafting=sequences if drafts else 0,
            steps=drafts,
            draft_ns=draft_ns,
        )

    def _order(self, sequences: int, length: int) -> DraftOrder:
        slots = np.arange(sequences)
        base = self._table.committed[slots]
        return DraftOrder(
            cycle=0,
            slots=slots,
            base=base,
            lengths=np.full(sequences, length),
            starts=base - 1,
            ids=self._table.tokens[slots, base - 1],
            fresh=slots,
            sampling=self._table.sampling.get(slots),
        )
