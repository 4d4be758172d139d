"""The least time that a device needs for a model's work, and so the most tokens/s."""

from bench.roofline.bounds import CellWork, best_length, cell_bound, step_seconds
from bench.roofline.models import ModelCost
from bench.roofline.rates import DEVICES, Rates

__all__ = [
    "DEVICES",
    "CellWork",
    "ModelCost",
    "Rates",
    "best_length",
    "cell_bound",
    "step_seconds",
]
