"""What a worker process has in place of the models' arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        sequences = batch.num_sequences
        context = int(batch.start_positions.sum()) / sequences
        cost = self._costs.at(sequences, batch.num_rows / sequences, context)
        self._device.run(self._launch_ns, round(cost * _MICROSECOND), self._synchronize_ns)
        rows = batch.num_rows if batch.logit_rows is None else len(batch.logit_rows)
        return self._logits.expand(rows, -1)


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
        )

    def model(self, role: str, stage: str) -> EmulatedModel:
        """What computes a model in a stage."""
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
