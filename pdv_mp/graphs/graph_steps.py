"""The recorded steps of one model, by shape; each is recorded when it is first needed."""

from __future__ import annotations

import time
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pdv_mp.graphs.capture import Capture
from pdv_mp.graphs.lanes import Column, bucket_of
from pdv_mp.graphs.sampling import needs_ranking
from pdv_mp.graphs.steps import MAX_FED, Bound, DraftLoop, ForwardStep, VerifyStep
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.model.language_model import LanguageModel
from pdv_mp.speculation.sampling import SamplingRows

MAX_ROWS = 9
"""Rows of a sequence in a recorded forward pass: 8 drafts and the token before them."""

_Any = TypeVar("_Any", ForwardStep, DraftLoop, VerifyStep)


class Judged(NamedTuple):
    """``accepted``, ``next_ids`` [B] as in ``speculation.acceptance``; ``logits`` float32, of
    which those of sequence b begin at row ``first_rows[b]``, until the next step."""

    accepted: npt.NDArray[np.int64]
    next_ids: npt.NDArray[np.int64]
    logits: Tensor
    first_rows: Column


class PendingDrafts:
    """Draft tokens that the device may still be computing; valid until the next draft."""

    def __init__(self, loop: DraftLoop, count: int) -> None:
        self._loop = loop
        self._count = count

    @property
    def device(self) -> Tensor:
        """int64 [lanes, K] on the device; rows from B on are padding."""
        return self._loop.drafts.device

    def wait(self) -> npt.NDArray[np.int64]:
        """int64 [B, K] on the host."""
        ids: npt.NDArray[np.int64] = self._loop.drafts.wait()[: self._count].copy()
        return ids

    @property
    def nanoseconds(self) -> int:
        """How long the device took, which is waited for."""
        return self._loop.watch.nanoseconds


class GraphSteps:
    """Recorded steps of a model and its cache.

    ``recorded_ns``: how long all recordings have taken together; a step during which it grows says
    nothing of what such a step costs.
    """

    def __init__(
        self, model: LanguageModel, cache: PagedKVCache, vocab_size: int, capture: Capture
    ) -> None:
        self._bound = Bound(model, cache, vocab_size)
        self._capture = capture
        self._forwards: dict[tuple[int, int], ForwardStep] = {}
        self._drafts: dict[tuple[int, int, bool], DraftLoop] = {}
        self._verifications: dict[tuple[int, int, bool], VerifyStep] = {}
        self.recorded_ns = 0

    def forward(self, batch: ForwardBatch) -> Tensor | None:
        """The logits that a batch wants; None for one that is not recorded: of a prompt, say."""
        lanes, longest = bucket_of(batch.num_sequences), int(batch.query_lens.max())
        if lanes is None or longest > MAX_ROWS or not batch.num_wanted:
            return None
        step = self._forwards.get((lanes, longest))
        if step is None:
            step = self._record(ForwardStep(self._bound, lanes, longest))
            self._forwards[lanes, longest] = step
        return step.run(batch)

    @property
    def max_fed(self) -> int:
        """Tokens that a draft may begin with."""
        return MAX_FED

    def can_draft(self, sequences: int, rows: SamplingRows) -> bool:
        """Whether :meth:`draft` can be asked; not for too many sequences, nor top_k and top_p."""
        return bucket_of(sequences) is not None and not self._ranks(rows)

    def draft(
        self,
        token_ids: Column,
        fed: Column,
        slots: Column,
        base: Column,
        lengths: Column,
        rows: SamplingRows,
    ) -> PendingDrafts:
        """Start to draft ``max(lengths)`` tokens for each sequence; see ``DraftLoop.run``.

        Raises ValueError for too many sequences.
        """
        lanes, steps = bucket_of(len(slots)), int(lengths.max())
        if lanes is None:
            raise ValueError(f"no draft of {len(slots)} sequences is recorded")
        key = (lanes, steps, not rows.all_greedy)
        loop = self._drafts.get(key)
        if loop is None:
            loop = self._drafts[key] = self._record(DraftLoop(self._bound, *key))
        loop.run(token_ids, fed, slots, base, lengths, rows)
        return PendingDrafts(loop, len(slots))

    def verify(
        self,
        last_ids: Column,
        drafts: npt.NDArray[np.int64] | Tensor,
        lengths: Column,
        slots: Column,
        base: Column,
        rows: SamplingRows,
    ) -> Judged | None:
        """Judge drafts; see ``VerifyStep.run``. None where that is not recorded."""
        lanes = bucket_of(len(slots))
        if lanes is None or self._ranks(rows):
            return None
        key = (lanes, int(lengths.max()), not rows.all_greedy)
        step = self._verifications.get(key)
        if step is None:
            step = self._verifications[key] = self._record(VerifyStep(self._bound, *key))
        found = step.run(last_ids, drafts, lengths, slots, base, rows)
        first_rows = np.arange(len(slots)) * step.row_stride
        return Judged(found[:, 0], found[:, 1], step.logits, first_rows)

    def _ranks(self, rows: SamplingRows) -> bool:
        return needs_ranking(rows, self._bound.vocab_size)

    def _record(self, step: _Any) -> _Any:
        started = time.monotonic_ns()
        step.record(self._capture)
        self.recorded_ns += time.monotonic_ns() - started
        return step
