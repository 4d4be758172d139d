"""What is measured: pairs of shapes, batches and draft lengths, and the engine's rates there."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.gpu.bounds import Device, bound
from bench.gpu.engine import serve
from bench.gpu.stand_ins import StandIn
from bench.gpu_facts.facts import Report
from bench.inflate.shapes import TargetShape
from pdv_mp import assets
from pdv_mp.config import EngineConfig
from pdv_mp.memory.blocks import blocks_for
from pdv_mp.model.architecture import ModelConfig
from pdv_mp.model.weights import Weights
from pdv_mp.resources.resource_plan import DRAFT
from pdv_mp.resources.resources import Resources, build_resources

NOISE = {0.7: 0.5, 0.42: 0.64}
"""Noise on the shipped verifier at which it agrees with itself so often, as ``pdv-bench inflate
--role draft --from pdv_mp/assets/verifier`` finds it in bfloat16."""

_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Pair:
    """A verifier and its draft, which agrees with it at about ``agreement``, on a device.

    ``prompt``, ``output``: tokens of each request; halfway its context is that of the bounds.
    """

    target: TargetShape
    draft: TargetShape
    agreement: float
    batches: tuple[int, ...]
    drafts: tuple[int | str, ...]
    prompt: int = 448
    output: int = 128
    device: str = "cuda:0"

    @property
    def context(self) -> int:
        """Tokens of a request halfway through its output."""
        return self.prompt + self.output // 2

    def label(self, drafts: int | str, batch: int) -> str:
        """The name of a cell in the report."""
        how = "plain" if drafts == 0 else f"agreement {self.agreement:g}, {drafts} drafts"
        return f"{self.target.name}, {how}, batch {batch}"


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Windows of the held-out files, no two of which begin alike."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(assets.verifier_path() / "tokenizer.json"))
    ids = [token for _, text in assets.heldout_files() for token in tokenizer.encode(text).ids]
    starts = np.random.default_rng(seed).permutation(len(ids) - length)[:count]
    return [ids[start : start + length] for start in starts.tolist()]


def measure_pair(report: Report, pair: Pair, rates: Device | None) -> None:
    """Every draft length at every batch; ``rates`` of the device give the bounds beside them."""
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        models = {
            "target": StandIn(pair.target),
            DRAFT: StandIn(pair.draft, NOISE[pair.agreement]),
        }
        folders = {role: one.write_folder(Path(folder) / role) for role, one in models.items()}
        configs = {role: ModelConfig.from_folder(path) for role, path in folders.items()}

        def fill(role: str, weights: Weights) -> None:
            models[role].fill(weights)

        resources: Resources | None = None
        for batch in pair.batches:
            config = _config(pair, folders, configs, max(pair.batches))
            if resources is None:
                resources = build_resources(config, fill)
                used = f"{resources.plan.attention}, {_graphs(resources)}"
                report.text(f"{pair.target.name}: attention, graphs", used)
            for drafts in pair.drafts:
                _measure_cell(report, pair, resources, config, batch, drafts)
                if rates is not None and isinstance(drafts, int):
                    most = bound(
                        configs["target"],
                        configs[DRAFT],
                        rates,
                        batch,
                        pair.context,
                        pair.agreement,
                        drafts,
                    )
                    report.numbers(f"{pair.label(drafts, batch)}: bound", "tokens/s", [most])
    del resources
    gc.collect()


def _measure_cell(
    report: Report,
    pair: Pair,
    resources: Resources,
    config: EngineConfig,
    batch: int,
    drafts: int | str,
) -> None:
    speculation = replace(config.speculation, num_speculative_tokens=drafts)
    config = replace(config, speculation=speculation)
    rounds = []
    # In the first one kernels are compiled and graphs recorded.
    for turn in range(1 + report.repeats(2, 1)):
        texts = prompts(batch, pair.prompt, 1000 * turn + batch)
        found = serve(resources, config, texts, pair.output)
        if turn:
            rounds.append(found)
    label = pair.label(drafts, batch)
    report.numbers(label, "tokens/s", [one.decode for one in rounds])
    report.numbers(f"{label}: prefill included", "tokens/s", [one.whole for one in rounds])
    if drafts:
        report.numbers(f"{label}: accepted / drafted", "", [one.acceptance for one in rounds])


def _config(
    pair: Pair, folders: dict[str, Path], configs: dict[str, ModelConfig], most: int
) -> EngineConfig:
    length = pair.prompt + pair.output
    dtype = torch.bfloat16
    tokens = _BLOCK * blocks_for(length + 16, _BLOCK)
    row = sum(config.kv_bytes_per_token(dtype) for config in configs.values())
    return EngineConfig.from_options(
        model=str(folders["target"]),
        draft_model=str(folders[DRAFT]),
        device=pair.device,
        dtype="bfloat16",
        max_model_len=length,
        max_num_seqs=most,
        queue_factor=1.0,
        max_num_batched_tokens=8192,
        prefill_priority=1.0,
        enable_prefix_caching=False,
        block_size=_BLOCK,
        kv_cache_memory=most * tokens * row,
        num_speculative_tokens=4,
    )


def _graphs(resources: Resources) -> str:
    recorded = all(runner.steps is not None for runner in resources.runners.values())
    return "CUDA graphs" if recorded else "no graphs"
