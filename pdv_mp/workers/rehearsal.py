"""Cycles on invented texts, before anything is served: their times are what a controller of draft
lengths starts with, so that no request pays for learning what a step costs."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

import numpy as np

from pdv_mp.config import EngineConfig
from pdv_mp.memory.blocks import blocks_for
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.resources.resources import Resources
from pdv_mp.scheduling.counters import Counters
from pdv_mp.scheduling.scheduler import USUALLY_FED
from pdv_mp.scheduling.sequences import SequenceTable
from pdv_mp.speculation.draft_length.controller import CycleTimes
from pdv_mp.speculation.draft_length.make import AUTO
from pdv_mp.speculative_config import ngram_of
from pdv_mp.stages.draft import DraftStage
from pdv_mp.stages.messages import DraftOrder, Proposal
from pdv_mp.stages.verify import VerifyStage
from pdv_mp.topology import scheduling_of

CONTEXT = 128
"""Tokens of each invented text."""
LENGTHS = (0, 1, 2, 4, 8, 16, 32, 64)
"""Draft lengths that are measured, as far as they are allowed; costs between are interpolated."""
REPEATS = 3
"""Times that a cycle runs, or one less if it is slow; the first may prepare what the others use."""
MAX_READING = 4
"""Texts that the draft reads to see what that costs."""
SLOW_NS = 30_000_000
BUDGET_NS = 3_000_000_000
"""Time after which no larger batch is begun."""
AGAIN_NS = 1_000_000_000
"""Time after which no batch is begun the second time."""


def rehearse(resources: Resources, config: EngineConfig) -> list[CycleTimes]:
    """Run cycles of growing batches through the draft and verify stages of this process and say
    what they took; nothing where the draft length is not chosen by costs.

    Call it before :attr:`Resources.pools` is asked for, which forgets what is left in the caches.
    """
    options = config.speculation
    if options.num_speculative_tokens != AUTO or options.draft_controller != "goodput":
        return []
    if not resources.has_draft and ngram_of(options) is None:
        return []
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
    times = [one for times in found.values() for one in times]
    return times + stage.readings(max(found, default=0))


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

    def readings(self, most: int) -> list[CycleTimes]:
        """A cycle in which the draft reads the texts of some sequences, ``most`` at most."""
        sequences = min(most, MAX_READING)
        if self._draft is None or not sequences or not self.longest:
            return []
        runs = [self.cycle(sequences, 1, reads=True) for _ in range(REPEATS)]
        return [functools.reduce(_shorter, runs)]

    def cycle(self, sequences: int, length: int, *, reads: bool = False) -> CycleTimes:
        """Draft and verify once, and forget the outcome. ``reads``: the draft lacks the texts."""
        order = self._order(sequences, length, 0 if reads else self._context - 1)
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
            fed=sequences * max(0, self._context - USUALLY_FED) if reads else 0,
            draft_ns=draft_ns,
        )

    def _order(self, sequences: int, length: int, start: int) -> DraftOrder:
        slots = np.arange(sequences)
        base = self._table.committed[slots]
        starts = np.full(sequences, start)
        return DraftOrder(
            cycle=0,
            slots=slots,
            base=base,
            lengths=np.full(sequences, length),
            starts=starts,
            ids=self._table.ragged_tokens(slots, starts, base - starts),
            fresh=slots,
            sampling=self._table.sampling.get(slots),
        )
