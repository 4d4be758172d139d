"""What follows from a cost table before anything runs; nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.emulation.cost_table import CostTable, ModelSizes, read_cost_table
from pdv_mp.emulation.device_name import EmulatedName
from pdv_mp.model.shape import ModelShape
from pdv_mp.topology_rows import Topology

LABEL = "emulated/"
"""What the names of emulated models begin with, wherever clients see them."""


def table_of(config: EngineConfig) -> CostTable | None:
    """The cost table that a prepared configuration names, None for a real device.

    Raises ConfigError for one that cannot be read.
    """
    name = EmulatedName.parse(config.model.device)
    return None if name is None else read_cost_table(Path(name.file))


def emulated_shape(sizes: ModelSizes, tokenizer: ModelShape) -> ModelShape:
    """The shape of an emulated model with the ids of the model whose tokenizer is used."""
    return ModelShape(
        architecture="emulated",
        vocab_size=tokenizer.vocab_size,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        num_kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        max_position_embeddings=sizes.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=tokenizer.eos_token_ids,
        dtype=sizes.dtype,
    )


def device_numbers(topology: Topology, default: str) -> tuple[int, ...]:
    """On which emulated device each worker process computes, in the order of the table."""
    numbers = []
    for process in topology.worker_names:
        worker, replica = topology.place(process)
        name = EmulatedName.parse(worker.device or default)
        if name is None:
            raise ConfigError(f"{process} is not on an emulated device, but others are")
        numbers.append(name.index(replica))
    return tuple(numbers)


def kv_bytes(table: CostTable, utilization: float, devices: int) -> int:
    """Bytes for the KV of all models on so many devices, each of which holds the weights.

    Raises ConfigError if the weights alone are too large.
    """
    left = int(table.memory_bytes * utilization) - table.weight_bytes
    if left <= 0:
        raise ConfigError(
            f"the weights of {table.name} take {table.weight_bytes} bytes, more than "
            f"--gpu-memory-utilization {utilization:g} leaves of the {table.memory_bytes} of an "
            "emulated device"
        )
    return left * devices
