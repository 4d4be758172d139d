"""What a process sets up on its device before anything is computed there."""

from __future__ import annotations

import torch

from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.resources.resource_plan import pick_device
from pdv_mp.topology import POOLS, topology_of

_DECODE_PRIORITY = -1
"""Priority of a stream that drafts or verifies; lower numbers go first, and 0 is the others'."""


def use_device(config: EngineConfig, process_name: str) -> torch.device:
    """Make a process's GPU the current one and, with ``--streams 2``, choose the stream that all of
    its stages run on: those that draft or verify have priority over those that only prefill.

    Call it before anything is computed. Returns the device. Raises ConfigError for a device that
    this machine lacks,
    and for ``--streams`` on a CPU.
    """
    device = pick_device(config.model.device)
    streams = config.scheduling.streams
    if device.type != "cuda":
        if streams > 1:
            raise ConfigError(
                f"--streams {streams} is for a GPU, and the device here is {device}: leave it out"
            )
        return device
    torch.cuda.set_device(device)
    if streams > 1 and process_name != POOLS:
        worker, _ = topology_of(config).place(process_name)
        priority = 0 if worker.stages == ("prefill",) else _DECODE_PRIORITY
        stream = torch.cuda.Stream(device, priority)  # type: ignore[no-untyped-call]
        torch.cuda.set_stream(stream)
    return device


def finish(device: torch.device) -> None:
    """Return when all that this thread has queued on a GPU is done; on a CPU it is done already."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
