"""The steps that are recorded: a forward pass, a draft of several tokens, a verification."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pdv_mp.graphs.buffers import Fields, Inputs, Output, Stopwatch
from pdv_mp.graphs.capture import Capture
from pdv_mp.graphs.lanes import Column, fill_rows, fill_tables, forward, table_fields
from pdv_mp.graphs.sampling import fill_sampling, sample_rows, sampling_fields
from pdv_mp.memory.device_array import without_owning
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.model.batch import ForwardBatch, to_device
from pdv_mp.model.language_model import LanguageModel
from pdv_mp.scheduling.columns import ragged_range
from pdv_mp.speculation.sampling import SamplingRows

MAX_FED = 2
"""Rows of the first step of a draft: after full acceptance the draft lacks two tokens."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A model bound to its cache; ids from ``vocab_size`` on are cut off."""

    model: LanguageModel
    cache: PagedKVCache
    vocab_size: int


class _Step:
    """A recording and its buffers.

    ``logits`` float32 [R, V], if the step leaves any: there until something else is replayed. Only
    the memory that all recordings share keeps them, or each would have its own for good: one
    verification of 8 drafts for 128 requests has 590 MB of them with a vocabulary of 128 thousand.
    """

    def __init__(self, bound: Bound, lanes: int, fields: Fields) -> None:
        self._bound = bound
        self._lanes = lanes
        self._device = bound.cache.device
        self._inputs = Inputs({**table_fields(bound.cache, lanes), **fields}, self._device)
        self.logits = torch.empty(0)
        self._replay = self._compute
        self._addresses = self._present

    @property
    def _present(self) -> tuple[int, int]:
        return self._inputs.address, self._bound.cache.pool.data_ptr()

    def record(self, capture: Capture) -> None:
        """Record the step; all lanes are padding meanwhile."""
        fill_tables(self._bound.cache, self._inputs.host, np.zeros(0, np.int64))
        self._pad()
        self._inputs.send()
        with torch.inference_mode():
            self._replay = capture(self._compute)
            self.logits = without_owning(self.logits)

    def _run(self) -> None:
        """Replay the step with what was sent."""
        if self._present != self._addresses:
            raise RuntimeError("memory that a recorded step uses has moved since it was recorded")
        with torch.inference_mode():
            self._replay()

    def _pad(self) -> None:
        """Fill in the other fields so that every row is padding."""
        raise NotImplementedError

    def _compute(self) -> None:
        raise NotImplementedError

    def _pad_rows(self, positions: str, places: str) -> None:
        host, nobody = self._inputs.host, np.zeros(0, np.int64)
        fill_rows(self._bound.cache, host[positions], host[places], nobody, nobody, nobody)

    def _forward(
        self, ids: Tensor, positions: Tensor, places: Tensor, rows: Tensor | None
    ) -> Tensor:
        bound = self._bound
        tables = self._inputs.device["tables"]
        flat = (ids.view(-1), positions.view(-1), places.view(-1))
        logits = forward(bound.model, bound.cache, *flat, tables, rows)
        return logits if logits.shape[1] == bound.vocab_size else logits[:, : bound.vocab_size]


class ForwardStep(_Step):
    """Logits of up to ``rows`` rows of each of ``lanes`` sequences."""

    def __init__(self, bound: Bound, lanes: int, rows: int) -> None:
        shape = (lanes, rows)
        fields: Fields = {"positions": (shape, torch.int64), "places": (shape, torch.int64)}
        super().__init__(bound, lanes, fields)
        self._ids = torch.zeros(shape, dtype=torch.int64, device=self._device)
        self._rows = rows

    def _pad(self) -> None:
        self._pad_rows("positions", "places")

    def _compute(self) -> None:
        given = self._inputs.device
        self.logits = self._forward(self._ids, given["positions"], given["places"], None)

    def run(self, batch: ForwardBatch) -> Tensor:
        """The logits that the batch wants; those of padding are nowhere."""
        inputs, bound = self._inputs, self._bound
        inputs.begin()
        fill_tables(bound.cache, inputs.host, batch.slots)
        fill_rows(
            bound.cache,
            inputs.host["positions"],
            inputs.host["places"],
            batch.slots,
            batch.start_positions,
            batch.query_lens,
        )
        firsts = np.arange(len(batch.slots)) * self._rows
        index = to_device(ragged_range(firsts, batch.query_lens), self._device)
        inputs.send()
        self._ids.view(-1).index_copy_(0, index, batch.token_ids)
        self._run()
        wanted = index if batch.logit_rows is None else index[batch.logit_rows]
        return self.logits.index_select(0, wanted)


class DraftLoop(_Step):
    """``steps`` draft tokens for each of ``lanes`` sequences, sampled on the device."""

    def __init__(self, bound: Bound, lanes: int, steps: int, sampled: bool) -> None:
        first, later = (lanes, MAX_FED), (steps, lanes)
        fields: Fields = {
            "first_ids": (first, torch.int64),
            "first_positions": (first, torch.int64),
            "first_places": (first, torch.int64),
            "last_rows": ((lanes,), torch.int64),
            "positions": (later, torch.int64),
            "places": (later, torch.int64),
            **sampling_fields(steps, lanes, sampled),
        }
        super().__init__(bound, lanes, fields)
        self._steps = steps
        self._sampled = sampled
        self.drafts = Output((lanes, steps), self._device)
        self.watch = Stopwatch(self._device)

    def _pad(self) -> None:
        self._pad_rows("first_positions", "first_places")
        self._pad_rows("positions", "places")

    def _compute(self) -> None:
        given, drafts = self._inputs.device, self.drafts.device
        ids, positions, places = (given[f"first_{name}"] for name in ("ids", "positions", "places"))
        rows: Tensor | None = given["last_rows"]
        for step in range(self._steps):
            logits = self._forward(ids, positions, places, rows)
            ids = sample_rows(logits, self._inputs, step, self._sampled)
            drafts[:, step].copy_(ids)
            if step + 1 < self._steps:
                positions, places = given["positions"][step + 1], given["places"][step + 1]
                rows = None

    def run(
        self,
        token_ids: Column,
        fed: Column,
        slots: Column,
        base: Column,
        lengths: Column,
        rows: SamplingRows,
    ) -> None:
        """Queue the draft and the copy of its tokens to the host.

        ``token_ids``: the last ``fed[b]`` (1 or 2) of the ``base[b]`` tokens of each sequence, one
        after the other. ``rows``: parameters of the first draft of each.
        """
        inputs, cache, count = self._inputs, self._bound.cache, len(slots)
        inputs.begin()
        host = inputs.host
        fill_tables(cache, host, slots)
        fill_rows(cache, host["first_positions"], host["first_places"], slots, base - fed, fed)
        host["first_ids"][:] = 0
        host["first_ids"][:count][np.arange(MAX_FED) < fed[:, None]] = token_ids
        host["last_rows"][:] = np.arange(self._lanes) * MAX_FED
        host["last_rows"][:count] += fed - 1
        # Column j: the row that feeds draft j - 1, which is not there in the first step.
        positions = np.zeros((self._lanes, self._steps), np.int64)
        places = np.zeros_like(positions)
        fill_rows(cache, positions[:, 1:], places[:, 1:], slots, base, lengths - 1)
        host["positions"][:] = positions.T
        host["places"][:] = places.T
        fill_sampling(inputs, np.arange(count), rows, self._steps)
        self.watch.start()
        inputs.send()
        self._run()
        self.drafts.fetch()
        self.watch.stop()


class VerifyStep(_Step):
    """Judges up to ``drafts`` draft tokens of each of ``lanes`` sequences by the rule of
    ``speculation.shared_gumbel``, on the device."""

    def __init__(self, bound: Bound, lanes: int, drafts: int, sampled: bool) -> None:
        shape = (lanes, drafts + 1)
        fields: Fields = {
            "ids": (shape, torch.int64),
            "positions": (shape, torch.int64),
            "places": (shape, torch.int64),
            "lengths": ((lanes, 1), torch.int64),
            **sampling_fields(1, lanes * (drafts + 1), sampled),
        }
        super().__init__(bound, lanes, fields)
        self._drafts = drafts
        self._sampled = sampled
        self._step = torch.arange(drafts, device=self._device)
        self._verdict = Output((lanes, 2), self._device)

    def _pad(self) -> None:
        self._pad_rows("positions", "places")

    def _compute(self) -> None:
        given = self._inputs.device
        self.logits = self._forward(given["ids"], given["positions"], given["places"], None)
        own = sample_rows(self.logits, self._inputs, 0, self._sampled).view(self._lanes, -1)
        same = (own[:, :-1] == given["ids"][:, 1:]) & (self._step < given["lengths"])
        accepted = same.long().cumprod(dim=1).sum(dim=1, keepdim=True)
        self._verdict.device[:, :1].copy_(accepted)
        self._verdict.device[:, 1:].copy_(own.gather(1, accepted))

    def run(
        self,
        last_ids: Column,
        drafts: npt.NDArray[np.int64] | Tensor,
        lengths: Column,
        slots: Column,
        base: Column,
        rows: SamplingRows,
    ) -> npt.NDArray[np.int64]:
        """Accepted drafts and the id that follows them, [B, 2].

        ``last_ids`` [B]: the last committed token of each, at position ``base - 1``. ``drafts``
        [B or more, K]: on the host, or on the device, where nobody waits for them. ``rows``:
        parameters of the ``lengths[b] + 1`` rows of each sequence, one after the other.
        """
        inputs, cache, count = self._inputs, self._bound.cache, len(slots)
        width = min(self._drafts, drafts.shape[1])
        inputs.begin()
        host = inputs.host
        fill_tables(cache, host, slots)
        fill_rows(cache, host["positions"], host["places"], slots, base - 1, lengths + 1)
        host["ids"][:] = 0
        host["ids"][:count, 0] = last_ids
        if not isinstance(drafts, Tensor):
            host["ids"][:count, 1 : 1 + width] = drafts[:, :width].clip(min=0)
        host["lengths"][:] = 0
        host["lengths"][:count, 0] = lengths
        firsts = np.arange(count) * (self._drafts + 1)
        fill_sampling(inputs, ragged_range(firsts, lengths + 1), rows, 1)
        inputs.send()
        if isinstance(drafts, Tensor):
            inputs.device["ids"][:count, 1 : 1 + width].copy_(drafts[:count, :width])
        self._run()
        self._verdict.fetch()
        verdict: npt.NDArray[np.int64] = self._verdict.wait()[:count].copy()
        return verdict

    @property
    def row_stride(self) -> int:
        """Rows of ``logits`` from one sequence to the next."""
        return self._drafts + 1
