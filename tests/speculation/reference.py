"""Sampling spelled out a second time, from transformers' own warpers and Python's integers."""

from __future__ import annotations

import functools
import math
from unittest import mock

import numpy as np
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pdv_mp.sampling_params import SamplingParams


def _splitmix64(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


def _lowbias32(value: int) -> int:
    value = ((value ^ (value >> 16)) * 0x7FEB352D) % 2**32
    value = ((value ^ (value >> 15)) * 0x846CA68B) % 2**32
    return value ^ (value >> 16)


@functools.cache
def row_keys(seed: int, position: int, purpose: int = 0) -> tuple[int, int]:
    """The keys of a row, low half first."""
    gamma = 0x9E3779B97F4A7C15
    by_seed = _splitmix64((seed + gamma) % 2**64)
    state = by_seed ^ _splitmix64(position * gamma % 2**64)
    key = _splitmix64((state + purpose * gamma) % 2**64)
    return key % 2**32, key >> 32


def gumbel(seed: int, position: int, token: int) -> float:
    """The noise, with exact logarithms of the uniform number as float32 holds it."""
    low, high = row_keys(seed, position)
    bits = _lowbias32((_lowbias32(token) ^ low) * (high | 1) % 2**32)
    u = (np.float32(bits % 2**31) + np.float32(0.5)) * np.float32(2**-31 * (1 - 2**-24))
    return -math.log(-math.log1p(-float(u)))


def processed_logprobs(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Log-probabilities of one row [V] after transformers' warpers, in the precision of logits.

    Which of equal tokens their nucleus keeps, transformers leaves to torch's sort; here to a stable
    one, so that there is one answer.
    """
    scores = logits[None]
    warpers = [TemperatureLogitsWarper(float(params.temperature))]
    if params.top_k > 0:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        warpers.append(MinPLogitsWarper(params.min_p))
    with mock.patch.object(torch, "sort", functools.partial(torch.sort, stable=True)):
        for warper in warpers:
            scores = warper(None, scores)
    return scores[0].log_softmax(dim=-1)


def scores(logits: torch.Tensor, params: SamplingParams, seed: int, position: int) -> torch.Tensor:
    """What the sampler maximises over one row [V]: float64."""
    if params.temperature == 0:
        return logits.double()
    noise = [gumbel(seed, position, token) for token in range(len(logits))]
    return processed_logprobs(logits.double(), params) + torch.tensor(noise, dtype=torch.float64)
