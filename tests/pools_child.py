"""A worker without stages for the tests of the pools: it maps what its row gives it, and obeys.

pools_child.py NAME RUN_DIR

It reads commands from stdin, a JSON array a line, and answers each with a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pdv_mp.config import ConfigError, EngineConfig
from pdv_mp.control import ControlClient
from pdv_mp.memory.kv_cache import KVCache
from pdv_mp.memory.paged_kv_cache import PagedKVCache
from pdv_mp.memory.report import buffer_memory, process_memory
from pdv_mp.model.batch import ForwardBatch
from pdv_mp.process import CONFIG_FILE, die_with_parent
from pdv_mp.resources.resources import Resources, attach_resources, build_resources
from pdv_mp.topology import topology_of
from pdv_mp.wire.control import SupervisorMessage


def batch_of(slot: int, tokens: list[int], device: torch.device) -> ForwardBatch:
    """Tokens at the beginning of a slot."""
    count = len(tokens)
    return ForwardBatch.build(
        np.array(tokens, np.int64), np.array([count]), np.array([0]), np.array([slot]), None, device
    )


def rows(cache: KVCache, slot: int, count: int) -> torch.Tensor:
    """The first keys of a slot in the first layer: [count, heads, head_dim]."""
    out = torch.empty(cache.rows_shape(count), dtype=cache.dtype, device=cache.device)
    return cache.export_rows(slot, 0, out)[0, :, 0]


class Commands:
    """What a test can ask of the process."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def facts(self) -> dict[str, Any]:
        resources = self._resources
        return {
            "runners": sorted(resources.runners),
            "caches": sorted(resources.caches),
            "blocks": resources.num_blocks,
            "slots": resources.num_slots,
        }

    def acquire(self, tokens: int) -> int:
        """A slot of the account that only the scheduler's process has."""
        grant = self._resources.pools.acquire(tokens)
        assert grant is not None
        return grant.slot

    def table(self, role: str) -> list[list[int]]:
        cache = self._resources.caches[role]
        assert isinstance(cache, PagedKVCache)
        return cache.block_table.tolist()

    def forward(self, role: str, slot: int, tokens: list[int]) -> list[float]:
        """Fills a slot; the sum of each row's logits."""
        runner = self._resources.runners[role]
        logits = runner.forward(batch_of(slot, tokens, runner.device))
        return logits.double().sum(1).tolist()

    def read(self, role: str, slot: int, count: int) -> float:
        """The sum of the first rows' keys."""
        return float(rows(self._resources.caches[role], slot, count).double().sum())

    def spoil(self, role: str) -> None:
        """A stray write into the weights."""
        transformer: Any = self._resources.runners[role].transformer
        transformer._panels["embed_tokens"][0, 0] = 1.0

    def memory(self) -> dict[str, Any]:
        whole = process_memory(os.getpid())
        buffers = buffer_memory(os.getpid())
        return {
            "pss": whole.pss,
            "private": whole.private,
            "buffers": {
                name: {
                    "rss": part.rss,
                    "pss": part.pss,
                    "touched_alone": part.touched_alone,
                    "copied": part.copied,
                }
                for name, part in buffers.items()
            },
        }


def main(name: str, run_dir: Path, parent_pid: int) -> int:
    die_with_parent(parent_pid)
    torch.set_num_threads(1)
    config = EngineConfig.from_json((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    control = ControlClient(run_dir, name)
    heard: list[str] = []

    def hear(message: SupervisorMessage) -> None:
        heard.append(type(message).__name__)

    resources = None
    answer: dict[str, Any] = {}
    try:
        if topology_of(config).has_pools:
            resources = attach_resources(config, run_dir, name, control, hear)
        else:
            resources = build_resources(config)
    except ConfigError as error:
        answer["refused"] = str(error)
    print(json.dumps({"attached": resources is not None, "heard": heard, **answer}), flush=True)
    if resources is not None:
        commands = Commands(resources)
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            print(json.dumps(getattr(commands, command)(*arguments)), flush=True)
    control.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
