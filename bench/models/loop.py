"""The training loop that the verifier and the draft share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from bench.models.checkpoint import load_checkpoint, save_checkpoint
from bench.models.llama import TrainingLlama
from bench.models.optimization import Optimizers
from bench.models.shapes import TrainingPlan

LossOfStep = Callable[[int], Tensor]


def train_model(
    model: TrainingLlama,
    plan: TrainingPlan,
    loss_of_step: LossOfStep,
    checkpoint: Path,
    max_steps: int | None = None,
) -> int:
    """Train ``model`` in place to the end of the plan, going on from ``checkpoint`` if it exists.

    ``loss_of_step(step)`` returns the scalar loss, in nats, of that step's batch. At most
    ``max_steps`` steps are made where that is given. Returns the number of steps done so far; the
    checkpoint holds the same.
    """
    optimizers = Optimizers(model, plan)
    start = load_checkpoint(checkpoint, model, optimizers) if checkpoint.exists() else 0
    end = plan.steps if max_steps is None else min(plan.steps, start + max_steps)
    average: float | None = None
    progress = tqdm(
        total=plan.steps, initial=start, desc=checkpoint.stem, unit="step", mininterval=5.0
    )
    with progress:
        for step in range(start, end):
            loss = loss_of_step(step)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizers.step(step)
            value = float(loss.detach())
            average = value if average is None else 0.98 * average + 0.02 * value
            progress.set_postfix(loss=f"{average:.4f}", refresh=False)
            progress.update()
            if (step + 1) % plan.checkpoint_steps == 0 and step + 1 < end:
                save_checkpoint(checkpoint, model, optimizers, step + 1)
    if end > start:
        save_checkpoint(checkpoint, model, optimizers, end)
    return max(start, end)
