"""How many CPU threads a process computes with."""

from __future__ import annotations

import os

import torch

from pdv_mp.config import EngineConfig
from pdv_mp.topology import topology_of


def set_threads(config: EngineConfig, process_name: str) -> None:
    """Give torch as many threads as the process's row says, or ``--threads``, or one per core.

    The launcher has bounded the kernels' libraries by the same number before Python started.
    """
    worker, _ = topology_of(config).place(process_name)
    threads = worker.threads or config.model.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
