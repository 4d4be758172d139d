"""Muon for the layers' matrices, AdamW for everything else, and their state as plain tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.models.shapes import TrainingPlan


class Optimizers:
    """Muon (Jordan et al. 2024; arXiv 2502.16982) and AdamW (arXiv 1711.05101) under one plan."""

    def __init__(self, model: nn.Module, plan: TrainingPlan) -> None:
        self._plan = plan
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            is_matrix = parameter.ndim == 2 and "embed" not in name
            (matrices if is_matrix else others).append(parameter)
        self._members: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (
                torch.optim.Muon(
                    matrices, lr=plan.matrix_rate, weight_decay=plan.weight_decay, momentum=0.95
                ),
                plan.matrix_rate,
            ),
            (
                torch.optim.AdamW(others, lr=plan.vector_rate, betas=(0.9, 0.95), weight_decay=0.0),
                plan.vector_rate,
            ),
        )
        self._others = others

    def step(self, step: int) -> None:
        """Apply the gradients at the rates of ``step`` and clear them."""
        nn.utils.clip_grad_norm_(self._others, 1.0)
        factor = self._plan.rate_factor(step)
        for optimizer, rate in self._members:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of both states under a flat name."""
        flat: dict[str, Tensor] = {}
        for number, (optimizer, _) in enumerate(self._members):
            for index, entries in optimizer.state_dict()["state"].items():
                for name, value in entries.items():
                    flat[f"{number}.{index}.{name}"] = torch.as_tensor(value)
        return flat

    def load_state(self, flat: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        for number, (optimizer, _) in enumerate(self._members):
            whole = optimizer.state_dict()
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in flat.items():
                member, index, name = key.split(".")
                if int(member) == number:
                    state.setdefault(int(index), {})[name] = value
            whole["state"] = state
            optimizer.load_state_dict(whole)
