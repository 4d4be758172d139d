"""transformers' own generate on the same stand-ins, alone and with an assistant model."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.gpu.cells import NOISE, Pair, prompts
from bench.gpu.stand_ins import DTYPE, StandIn
from bench.gpu_facts.facts import Report


def measure_transformers(report: Report, pair: Pair, batches: tuple[int, ...]) -> None:
    """``generate`` at every batch, and ``assistant_model``, which takes one text at a time."""
    target = _load(StandIn(pair.target), pair.device)
    for batch in batches:
        rates = [_rate(target, pair, batch, seed, {}) for seed in range(report.repeats(2, 1))]
        label = f"{pair.target.name}, transformers generate, batch {batch}"
        report.numbers(label, "tokens/s", rates)
    draft = _load(StandIn(pair.draft, NOISE[pair.agreement]), pair.device)
    options = {"assistant_model": draft}
    rates = [_rate(target, pair, 1, seed, options) for seed in range(report.repeats(2, 1))]
    label = f"{pair.target.name}, transformers assistant_model, agreement {pair.agreement:g}"
    report.numbers(f"{label}, batch 1", "tokens/s", rates)


def _load(stand_in: StandIn, device: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        config = AutoConfig.from_pretrained(stand_in.write_folder(Path(folder) / "model"))
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in stand_in.tensors(device):
            parameters.pop(name).copy_(tensor)
    if parameters:
        raise RuntimeError(f"the stand-in has no {', '.join(sorted(parameters))}")
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def _rate(model: Any, pair: Pair, batch: int, seed: int, options: dict[str, Any]) -> float:
    """Tokens/s of decoding: what the tokens after the first take longer than the first alone."""
    ids = torch.tensor(prompts(batch, pair.prompt, seed), device=pair.device)
    seconds = []
    for count in (1, pair.output):
        for _ in range(2 if seed == 0 else 1):  # the first time warms up
            started = time.perf_counter()
            with torch.inference_mode():
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=count,
                    do_sample=False,
                    **options,
                )
            out.cpu()
            took = time.perf_counter() - started
        if out.shape[1] != pair.prompt + count:
            raise RuntimeError(f"generate gave {out.shape[1] - pair.prompt} tokens, not {count}")
        seconds.append(took)
    return batch * (pair.output - 1) / (seconds[1] - seconds[0])
