"""The KV cache of an emulated device: slots and lengths are checked, and nothing is stored."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import torch

from pdv_mp.memory.attention_plan import AttentionPlan
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.model.batch import ForwardBatch

_NOTHING = AttentionPlan(write_index=(), write_views=None, groups=(), pad=None, restore=None)


class EmulatedKVCache(KVCache):
    """Takes no memory, whatever the model. Blocks are accounted for by whoever owns the pools, and
    shared between sequences as those behind a table are."""

    def plan(self, batch: ForwardBatch) -> AttentionPlan:
        """Raises ValueError for a slot or position that does not exist."""
        if int(batch.slots.max()) >= self.num_slots:
            raise ValueError(f"slot {batch.slots.max()} of {self.num_slots} does not exist")
        last = int(np.max(batch.start_positions + batch.query_lens)) - 1
        if last >= self.max_model_len:
            raise ValueError(f"position {last} lies beyond max_model_len {self.max_model_len}")
        return _NOTHING

    def advance(self, plan: AttentionPlan, batch: ForwardBatch) -> AttentionPlan:
        """As :meth:`plan`."""
        return self.plan(batch)

    def reset(self) -> None:
        """There is nothing to forget."""

    def export_rows(self, slot: int, start: int, out: torch.Tensor) -> torch.Tensor:
        _refuse()

    def import_rows(self, slot: int, start: int, rows: torch.Tensor) -> None:
        _refuse()

    def write(self, layer: int, kv: torch.Tensor, plan: AttentionPlan) -> None:
        _refuse()

    @property
    def addresses(self) -> NoReturn:
        _refuse()

    def units(self, batch: ForwardBatch, ends: object = None) -> NoReturn:
        _refuse()

    def _destination(self, batch: ForwardBatch) -> NoReturn:
        _refuse()

    def _source(self, slots: object, context: int) -> NoReturn:
        _refuse()

    def _keys_values(self, layer: int, group: object) -> NoReturn:
        _refuse()


def _refuse() -> NoReturn:
    raise RuntimeError("an emulated device keeps no keys and values")
