"""What a worker process has in place of the models' arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pdv_mp.config import EngineConfig
from pdv_mp.emulation.cost_table import CostTable
from pdv_mp.emulation.device_time import DEVICE_FILE, EmulatedDevice
from pdv_mp.emulation.planning import device_numbers
from pdv_mp.emulation.tokens import EmulatedTokens
from pdv_mp.topology_rows import Topology

if TYPE_CHECKING:
    from pdv_mp.memory.attention_plan import AttentionPlan
    from pdv_mp.memory.kv_cache import KVCache
    from pdv_mp.model.batch import ForwardBatch
    from pdv_mp.speculation.sampling import SamplingRows

_MICROSECOND = 1000


class EmulatedModel:
    """A model whose forward pass takes the time of a step and computes nothing."""

    uses_plan = True

    def __init__(
        self, table: CostTable, step: str, device: EmulatedDevice, vocab_size: int
    ) -> None:
        self._costs = table.steps[step]
        self._launch_ns = round(table.launch_us * _MICROSECOND)
        self._synchronize_ns = round(table.synchronize_us * _MICROSECOND)
        self._device = device
        self._logits = torch.zeros(1, 1).expand(1, vocab_size)

    def forward(
        self, batch: ForwardBatch, cache: KVCache, plan: AttentionPlan | None = None
    ) -> torch.Tensor:
        """Zeros of the shape that logits would have, which take no memory."""
        if plan is None:
            cache.plan(batch)
        self._run(self._cost_us(batch))
        rows = batch.num_wanted
        return self._logits.expand(rows, -1)

    def _cost_us(self, batch: ForwardBatch) -> float:
        sequences = batch.num_sequences
        context = int(batch.start_positions.sum()) / sequences
        return self._costs.at(sequences, batch.num_rows / sequences, context)

    def _run(self, microseconds: float) -> None:
        """Launch so much work of the device, and wait for its end."""
        self._device.run(self._launch_ns, round(microseconds * _MICROSECOND), self._synchronize_ns)


class EmulatedDrafter(EmulatedModel):
    """A draft model whose whole draft is one launch, as kernels and recordings of real ones are."""

    def __init__(
        self, table: CostTable, device: EmulatedDevice, vocab_size: int, tokens: EmulatedTokens
    ) -> None:
        super().__init__(table, "draft", device, vocab_size)
        self._tokens = tokens

    def can_draft(self, rows: SamplingRows) -> bool:
        """Whatever the parameters are."""
        del rows
        return True

    def draft(
        self,
        batch: ForwardBatch,
        cache: KVCache,
        lengths: npt.NDArray[np.int64],
        vocab_size: int,
        rows: SamplingRows,
    ) -> npt.NDArray[np.int64]:
        """As ``Drafter.draft``, in the time that its steps take one after the other."""
        del vocab_size
        cache.plan(batch)
        last = int(np.max(batch.start_positions + batch.query_lens + lengths - 1)) - 1
        if last >= cache.max_model_len:
            raise ValueError(f"position {last} lies beyond max_model_len {cache.max_model_len}")
        self._run(self._cost_us(batch) + self._further_us(batch, lengths))
        places = np.arange(int(lengths.max()))
        wanted = places < lengths[:, None]
        drafted = rows.select(np.nonzero(wanted)[0])
        positions = (rows.positions[:, None] + places)[wanted]
        ids = np.full(wanted.shape, -1, np.int64)
        ids[wanted] = self._tokens.drafts(replace(drafted, positions=positions))
        return ids

    def _further_us(self, batch: ForwardBatch, lengths: npt.NDArray[np.int64]) -> float:
        """All steps but the first, each with one row of every sequence that goes on."""
        ends = batch.start_positions + batch.query_lens
        total, done = 0.0, 1
        for length in np.unique(lengths[lengths > 1]).tolist():
            going = lengths >= length
            context = float(ends[going].mean()) + (done + length - 3) / 2
            total += (length - done) * self._costs.at(int(going.sum()), 1, context)
            done = length
        return total


class Emulator:
    """The emulated devices as one worker process uses them: ``process`` is its name, or None where
    it is alone and there is no ``run_dir``."""

    def __init__(
        self,
        table: CostTable,
        config: EngineConfig,
        topology: Topology,
        vocab_size: int,
        eos_ids: tuple[int, ...],
        run_dir: Path | None = None,
        process: str | None = None,
    ) -> None:
        self.table = table
        self.tokens = EmulatedTokens(table.acceptance, vocab_size, eos_ids)
        names = topology.worker_names
        process = names[0] if process is None else process
        _, replica = topology.place(process)
        self._replica = [names.index(name) for name in topology.names_in(replica)]
        self._vocab_size = vocab_size
        self._device = EmulatedDevice(
            None if run_dir is None else run_dir / DEVICE_FILE,
            device_numbers(topology, config.model.device),
            names.index(process),
            slice_ns=round(table.time_slice_us * _MICROSECOND),
            overlap=table.overlap,
            host_core=table.host_core,
            contention=table.contention,
        )

    def model(self, role: str, stage: str) -> EmulatedModel:
        """What computes a model in a stage."""
        if stage == "draft":
            return EmulatedDrafter(self.table, self._device, self._vocab_size, self.tokens)
        step = f"{stage}_draft" if (stage, role) == ("prefill", "draft") else stage
        return EmulatedModel(self.table, step, self._device, self._vocab_size)

    def close(self) -> None:
        """The process is about to end."""
        self._device.close()

    def report(self) -> dict[str, Any]:
        """What the processes of this replica have done on emulated devices."""
        return {
            "table": self.table.name,
            "acceptance": str(self.table.acceptance),
            **self._device.report(self._replica),
        }
