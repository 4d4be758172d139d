"""What can be known to be wrong about an emulated device before any process starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pdv_mp.config import ConfigError, EngineConfig, ModelOptions
from pdv_mp.emulation.cost_table import read_cost_table
from pdv_mp.emulation.device_name import PREFIX, EmulatedName, table_path
from pdv_mp.emulation.planning import LABEL, device_numbers, emulated_shape, kv_bytes
from pdv_mp.model.shape import ModelShape
from pdv_mp.topology import Topology, topology_of


def on_emulated_devices(row: Topology, default: str) -> tuple[Topology, str]:
    """The row with the device of each worker in full, and ``--device`` likewise.

    A worker's ``emulated:#1`` is another device with the cost table of ``--device``. Raises
    ConfigError if workers compute elsewhere, or by different tables.
    """
    common = EmulatedName.parse(default)
    workers, files = [], set()
    for worker in row.workers:
        name = EmulatedName.parse(worker.device or default)
        if name is None:
            raise ConfigError(
                f"topology {row.name!r} has workers on emulated devices and on "
                f"{worker.device or default}; all must be emulated, or none"
            )
        file = name.file or (common.file if common is not None else "")
        if not file:
            raise ConfigError(
                f"worker {worker.name!r} is on {worker.device!r}, which names no cost table, and "
                f"--device is {default}: give --device {PREFIX}FILE"
            )
        path = str(table_path(file))
        files.add(path)
        device = str(EmulatedName(path, name.number))
        workers.append(dataclasses.replace(worker, device=device))
    if len(files) > 1:
        raise ConfigError(
            f"topology {row.name!r} has workers with the cost tables {' and '.join(sorted(files))};"
            " all must have one, but may be on different devices of it (#N)"
        )
    device = str(EmulatedName(files.pop(), common.number if common is not None else "0"))
    return dataclasses.replace(row, workers=tuple(workers)), device


def check_emulated(config: EngineConfig) -> None:
    """Raises ConfigError for options that an emulated device gives no meaning."""
    if config.model.model is not None:
        raise ConfigError(
            f"--model {config.model.model} does not go with an emulated device: its cost table "
            "says which models are emulated"
        )
    if config.model.draft_model not in (None, "none"):
        raise ConfigError(
            f"--draft-model {config.model.draft_model} does not go with an emulated device: its "
            "cost table says which models are emulated; only none can be given"
        )
    if config.cache.kv_handoff != "pool":
        raise ConfigError(
            f"--kv-handoff {config.cache.kv_handoff} needs KV to hand on, and an emulated device "
            "has none: use pool"
        )
    if config.speculation.acceptance != "gumbel":
        raise ConfigError(
            f"--acceptance {config.speculation.acceptance} needs the models' probabilities, and "
            "on an emulated device the cost table says which drafts are kept: leave it out"
        )
    if config.handoff.exclusive_device:
        raise ConfigError(
            "--exclusive-device is for a CPU; an emulated device works on one step at a time by "
            "itself"
        )
    if config.scheduling.streams > 1:
        raise ConfigError(
            f"--streams {config.scheduling.streams} is for a GPU: leave it out on an emulated one"
        )
    table = read_cost_table(_file(config.model.device))
    row = topology_of(config)
    devices = len(set(device_numbers(row, config.model.device)))
    if config.cache.kv_cache_memory is None:
        kv_bytes(table, config.cache.gpu_memory_utilization, devices)


def with_name(model: ModelOptions) -> ModelOptions:
    """The options with a name that says that the model is emulated."""
    if model.served_model_name is not None:
        return model
    name = LABEL + read_cost_table(_file(model.device)).models["target"].name
    return dataclasses.replace(model, served_model_name=name)


def as_emulated(
    model: ModelOptions, tokenizers: Sequence[ModelShape]
) -> tuple[ModelOptions, list[ModelShape]]:
    """The options with a draft model only if there is one, and the models' shapes;
    ``tokenizers``: the shapes of the models whose tokenizer is used."""
    table = read_cost_table(_file(model.device))
    drafts = table.has_draft and len(tokenizers) > 1
    roles = ["target", "draft"] if drafts else ["target"]
    shapes = [emulated_shape(table.models[role], tokenizers[0]) for role in roles]
    return dataclasses.replace(model, draft_model=model.draft_model if drafts else None), shapes


def _file(device: str) -> Path:
    name = EmulatedName.parse(device)
    if name is None:
        raise ConfigError(f"{device} is not an emulated device")
    return Path(name.file)
