"""Stand-ins of big models in a GPU's memory: the shipped verifier in their shapes.

They are what ``pdv-bench inflate`` writes, made tensor by tensor where they are needed: a model of
34 billion parameters fits onto few disks of machines that are lent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.inflate.checkpoint import Plan, make_plan
from bench.inflate.contents import Inflation
from bench.inflate.noise import perturbed
from bench.inflate.shapes import TargetShape
from bench.inflate.shards import background_noise, whole_tensor
from bench.inflate.source import find_pair, read_tensors
from pdv_mp import assets
from pdv_mp.model.fusion import placements
from pdv_mp.model.weights import Weights

DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class StandIn:
    """A shape, and how much noise the shipped verifier has in it."""

    shape: TargetShape
    noise: float = 0.0

    def plan(self) -> Plan:
        """Where everything lies."""
        pair = find_pair(str(assets.verifier_path()), "draft", None)
        return make_plan(self.shape, pair, "bfloat16", 1 << 40, 0)

    def write_folder(self, folder: Path) -> Path:
        """All but the weights: config.json and the tokenizer."""
        plan = self.plan()
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(plan.layout.config), encoding="utf-8")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(assets.verifier_path() / name, folder / name)
        return folder

    def tensors(self, device: torch.device | str) -> Iterator[tuple[str, torch.Tensor]]:
        """The checkpoint's tensors by name, bfloat16, made on the device."""
        plan = self.plan()
        small = read_tensors(plan.pair.inflated, plan.layout.source)
        weights = perturbed(small, self.noise, plan.seed, plan.dtype)
        noise = background_noise(plan.seed, plan.dtype).to(device)
        for name, shape, content in Inflation(plan.layout, weights, plan.dtype).contents():
            yield name, whole_tensor(name, shape, content, noise)

    def fill(self, weights: Weights) -> None:
        """Write the weights in our own form, rearranged on their device."""
        pending = placements(self.plan().layout.target)
        for name, tensor in self.tensors(weights.device):
            pending.pop(name).store(weights, name, tensor)
        if pending:
            raise RuntimeError(f"the stand-in has no {', '.join(sorted(pending))}")
