"""Train the draft to follow the verifier: distillation on corpus text and on the verifier's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from bench.models.batches import WindowSampler
from bench.models.continuations import continue_rows, sample_prompts
from bench.models.llama import TrainingLlama
from bench.models.shapes import ContinuationPlan, TrainingPlan

CHOICE_WEIGHT = 0.3
LONG_PERIOD = 8


def write_continuations(
    verifier: TrainingLlama,
    stream: NDArray[np.uint16],
    plan: ContinuationPlan,
    window: int,
    folder: Path,
    seed: int,
) -> NDArray[np.uint16]:
    """Rows ``[n, window + 1]`` of training text continued by the verifier, one file per batch.

    Prompt lengths take turns over ``plan.prompt_lengths``; one row in ``plan.sampled_period`` is
    sampled at temperature 1, the others are greedy. Batches that ``folder`` holds are read back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temperatures = (torch.arange(plan.rows) % plan.sampled_period == 0).float()
    batches: list[NDArray[np.uint16]] = []
    for number in tqdm(range(plan.batches), desc="continuations", unit="batch"):
        path = folder / f"{number:03d}.npy"
        if not path.exists():
            length = plan.prompt_lengths[number % len(plan.prompt_lengths)]
            prompts = sample_prompts(stream, plan.rows, length, seed + number)
            rows = continue_rows(
                verifier, prompts, window + 1 - length, temperatures, seed + number
            )
            unfinished = path.with_suffix(".unfinished.npy")
            np.save(unfinished, rows.numpy().astype(np.uint16))
            unfinished.rename(path)
        batches.append(np.load(path))
    return np.concatenate(batches)


class MixedSampler:
    """Batches that are half corpus windows and half continuations; every few steps, long windows.

    A function of the seed and the step alone, as ``WindowSampler``.
    """

    def __init__(
        self,
        stream: NDArray[np.uint16],
        continuations: NDArray[np.uint16],
        plan: TrainingPlan,
        seed: int,
    ) -> None:
        self._rows = plan.tokens_per_batch // plan.window // 2
        self._corpus = WindowSampler(stream, plan.window, self._rows, seed)
        self._long = WindowSampler(
            stream, plan.long_window, plan.tokens_per_batch // plan.long_window, seed
        )
        self._continuations = continuations
        self._seed = seed

    def batch(self, step: int) -> Tensor:
        """The inputs of ``step``, int64 ``[rows, window]``."""
        if step % LONG_PERIOD == LONG_PERIOD - 1:
            return self._long.batch(step)[0]
        ids, _ = self._corpus.batch(step)
        epoch, index = divmod(step, len(self._continuations) // self._rows)
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._continuations))
        chosen = order[index * self._rows : (index + 1) * self._rows]
        own = torch.from_numpy(self._continuations[chosen].astype(np.int64))
        return torch.cat((ids, own[:, :-1]))


def initialise_embedding(draft: TrainingLlama, verifier: TrainingLlama) -> None:
    """Start the draft's embedding as the verifier's on its principal directions."""
    source = verifier.model.embed_tokens.weight.detach().float()
    directions = torch.linalg.svd(source, full_matrices=False).Vh
    target = draft.model.embed_tokens.weight
    with torch.no_grad():
        target.copy_(source @ directions[: target.shape[1]].T)


def distillation_loss(draft: TrainingLlama, ids: Tensor, teacher_logits: Tensor) -> Tensor:
    """``(1 - w) KL(verifier || draft) + w`` cross-entropy on the verifier's greedy choice.

    Means per token, in nats, at temperature 1 (arXiv 1503.02531; for drafts, arXiv 2310.08461).
    The divergence makes sampled drafts agree, the cross-entropy greedy ones. ``teacher_logits`` is
    ``[rows, window, vocabulary]``; ``w`` is ``CHOICE_WEIGHT``.
    """
    student = F.log_softmax(draft(ids).float().flatten(0, 1), dim=-1)
    teacher = F.log_softmax(teacher_logits.float().flatten(0, 1), dim=-1)
    divergence = (teacher.exp() * (teacher - student)).sum(-1).mean()
    choice = F.nll_loss(student, teacher.argmax(-1))
    return (1 - CHOICE_WEIGHT) * divergence + CHOICE_WEIGHT * choice


def draft_loss_of_step(
    draft: TrainingLlama, verifier: TrainingLlama, sampler: MixedSampler, compiled: bool
) -> Callable[[int], Tensor]:
    """The loss of a step, as ``train_model`` takes it."""

    def student_loss(ids: Tensor, teacher_logits: Tensor) -> Tensor:
        return distillation_loss(draft, ids, teacher_logits)

    teacher: Callable[[Tensor], Tensor] = verifier.forward
    if compiled:
        teacher = torch.compile(teacher, dynamic=False)
        student_loss = torch.compile(student_loss, dynamic=False)

    def loss_of_step(step: int) -> Tensor:
        ids = sampler.batch(step)
        with torch.no_grad():
            teacher_logits = teacher(ids)
        return student_loss(ids, teacher_logits)

    return loss_of_step
