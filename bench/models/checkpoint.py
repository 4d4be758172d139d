"""Checkpoints of a training run: one safetensors file, replaced whole."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.models.llama import TrainingLlama
from bench.models.optimization import Optimizers

_MODEL = "model:"
_OPTIMIZER = "optimizer:"


def save_checkpoint(path: Path, model: TrainingLlama, optimizers: Optimizers, step: int) -> None:
    """Write the model, the optimizers' state and the number of steps done."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        tensors[_MODEL + name] = value
    for name, value in optimizers.state().items():
        tensors[_OPTIMIZER + name] = value.clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={"step": str(step)})
    os.replace(unfinished, path)


def load_checkpoint(path: Path, model: TrainingLlama, optimizers: Optimizers | None) -> int:
    """Load a checkpoint into the model and, where given, the optimizers; return the steps done."""
    weights: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as opened:
        step = int(opened.metadata()["step"])
        for key in opened.keys():  # noqa: SIM118
            value = opened.get_tensor(key)
            if key.startswith(_MODEL):
                weights[key[len(_MODEL) :]] = value
            else:
                state[key[len(_OPTIMIZER) :]] = value
    model.load_state_dict(weights)
    if optimizers is not None:
        optimizers.load_state(state)
    return step
