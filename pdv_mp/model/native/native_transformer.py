"""The forward pass of the Llama family by our own compiled kernels, for float32 on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pdv_mp.model.native.library import (
    Batch,
    Cache,
    Choice,
    Drafts,
    Layer,
    Matrix,
    Model,
    NativeLibrary,
)
from pdv_mp.model.rope import rotation_table
from pdv_mp.speculation.acceptance import Acceptance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pdv_mp.memory.attention_plan import AttentionPlan
    from pdv_mp.memory.kv_cache import KVCache
    from pdv_mp.model.architecture import ModelConfig
    from pdv_mp.model.batch import ForwardBatch
    from pdv_mp.model.weights import Weights
    from pdv_mp.speculation.sampling import SamplingRows


class NativeTransformer:
    """As :class:`~pdv_mp.model.transformer.Transformer`; all layers are one call.

    A row's logits have the same bits in every batch and with every number of threads.
    """

    uses_plan = False

    def __init__(
        self, config: ModelConfig, panels: Weights, max_model_len: int, library: NativeLibrary
    ) -> None:
        """`panels`: as :func:`~pdv_mp.model.native.panels.fill_panels` makes them; they are read
        where they lie, and other processes may read them, too.

        Positions 0 .. max_model_len - 1 may occur; ModelError if the model cannot go so far.
        """
        config.check_max_model_len(max_model_len)
        self.config = config
        self.max_model_len = max_model_len
        self._library = library
        self._panels = panels
        table = rotation_table(config.rope, config.head_dim, max_model_len, torch.device("cpu"))
        self._rotations = torch.view_as_real(table).contiguous()
        self._layers = (Layer * config.num_layers)(
            *(self._layer(f"layers.{index}.") for index in range(config.num_layers))
        )
        self._model = Model(
            embedding=panels["embed_tokens"].data_ptr(),
            rotations=self._rotations.data_ptr(),
            layers=self._layers,
            lm_head=self._matrix("lm_head", config.vocab_size),
            hidden=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            width=config.intermediate_size,
            eps=config.rms_norm_eps,
        )
        self.seconds: NDArray[np.float64] | None = None
        """What each of PHASES took is added to, if it is wanted: [len(PHASES)]."""
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self._logits = torch.empty((0, config.vocab_size))
        """Room for logits that only :meth:`verify` sees: [rows, vocab_size]."""
        self._cache: tuple[KVCache, Cache] | None = None

    def _layer(self, prefix: str) -> Layer:
        config = self.config
        query = config.num_heads * config.head_dim
        qk_norm = self._panels.get(prefix + "qk_norm")
        return Layer(
            qkv=self._matrix(prefix + "qkv", query + 2 * config.num_kv_heads * config.head_dim),
            o=self._matrix(prefix + "o", config.hidden_size),
            gate_up=self._matrix(prefix + "gate_up", 2 * config.intermediate_size),
            down=self._matrix(prefix + "down", config.hidden_size),
            qk_norm=None if qk_norm is None else qk_norm.data_ptr(),
        )

    def _matrix(self, name: str, outputs: int) -> Matrix:
        panels, bias = self._panels[name + "_proj"], self._panels.get(name + "_bias")
        return Matrix(
            panels=panels.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            outputs=outputs,
            inputs=panels.shape[1],
        )

    def forward(
        self, batch: ForwardBatch, cache: KVCache, plan: AttentionPlan | None = None
    ) -> torch.Tensor:
        """As ``Transformer.forward``; `plan` is not needed."""
        logits = torch.empty((batch.num_wanted, self.config.vocab_size))
        self._forward(batch, cache, logits.data_ptr(), None)
        return logits

    def verify(self, batch: ForwardBatch, cache: KVCache, vocab_size: int) -> Acceptance:
        """As ``GreedyVerifier.verify``."""
        if batch.wanted_rows is not None:
            raise ValueError("drafts are judged by the logits of all rows")
        rows, sequences = batch.num_rows, batch.num_sequences
        if len(self._logits) < rows:
            self._logits = torch.empty((rows, self.config.vocab_size))
        found = np.empty(rows + 2 * sequences, np.int64)
        address = _pointer(found)
        accepted, next_ids = address + 8 * rows, address + 8 * (rows + sequences)
        choice = Choice(address, vocab_size, accepted, next_ids)
        self._forward(batch, cache, self._logits.data_ptr(), choice)
        return Acceptance(found[rows : rows + sequences], found[rows + sequences :])

    def _forward(
        self, batch: ForwardBatch, cache: KVCache, logits: int, choice: Choice | None
    ) -> None:
        """`logits`: the address of room for [batch.num_wanted, vocab_size]."""
        table, wanted = cache.units(batch), batch.num_wanted
        context, threads = batch.context, torch.get_num_threads()
        nbytes = self._library.workspace(self._model, batch.num_rows, wanted, context, threads)
        columns = _columns(batch, table)
        self._library.forward(
            self._model,
            self._where(cache),
            _described(batch, table, columns),
            self._room(nbytes),
            context,
            logits,
            choice,
            threads,
            None if self.seconds is None else _pointer(self.seconds),
        )

    def can_draft(self, rows: SamplingRows) -> bool:
        """Greedy rows alone."""
        return rows.all_greedy

    def draft(
        self,
        batch: ForwardBatch,
        cache: KVCache,
        lengths: NDArray[np.int64],
        vocab_size: int,
        rows: SamplingRows,
    ) -> NDArray[np.int64]:
        """As ``Drafter.draft``; all steps are one call."""
        del rows
        lengths = np.ascontiguousarray(lengths, np.int64)
        ends = batch.start_positions + batch.query_lens + lengths - 1
        table = cache.units(batch, ends)
        count, context, threads = batch.num_sequences, int(ends.max()), torch.get_num_threads()
        ids = np.full((count, int(lengths.max())), -1, np.int64)
        nbytes = self._library.workspace(self._model, batch.num_rows, count, context, threads)
        nbytes += self._library.draft_workspace(self._model, *table.shape)
        columns = _columns(batch, table)
        self._library.draft(
            self._model,
            self._where(cache),
            _described(batch, table, columns),
            Drafts(_pointer(lengths), _pointer(ids), ids.shape[1], vocab_size),
            self._room(nbytes),
            context,
            threads,
            None if self.seconds is None else _pointer(self.seconds),
        )
        return ids

    def _where(self, cache: KVCache) -> Cache:
        """Where a cache's rows lie, which does not change."""
        if self._cache is None or self._cache[0] is not cache:
            self._cache = cache, Cache(*cache.addresses)
        return self._cache[1]

    def _room(self, nbytes: int) -> int:
        """Address of so much workspace."""
        if nbytes > self._workspace.nbytes:
            self._workspace = torch.empty(nbytes, dtype=torch.uint8)
        return self._workspace.data_ptr()


def _columns(batch: ForwardBatch, table: NDArray[np.int64]) -> NDArray[np.int64]:
    """The columns of a batch, one after the other: to ask numpy where an array lies takes longer
    than to copy a few numbers."""
    parts = [batch.ids, batch.row_positions, batch.query_lens, table.ravel()]
    if batch.wanted_rows is not None:
        parts.append(batch.wanted_rows)
    return np.concatenate(parts)


def _described(batch: ForwardBatch, table: NDArray[np.int64], columns: NDArray[np.int64]) -> Batch:
    """For the kernels; it is valid as long as its columns are there."""
    rows, (sequences, units) = batch.num_rows, table.shape
    ids = _pointer(columns)
    positions = ids + 8 * rows
    query_lens = positions + 8 * rows
    units_of = query_lens + 8 * sequences
    wanted = None if batch.wanted_rows is None else units_of + 8 * sequences * units
    return Batch(
        ids, positions, query_lens, units_of, wanted, rows, sequences, units, batch.num_wanted
    )


def _pointer(array: NDArray[np.int64] | NDArray[np.float64]) -> int:
    return int(array.__array_interface__["data"][0])
