"""Log-probabilities of tokens and of the best alternatives, in the model's own distribution.

That is the softmax of the raw logits, before temperature and truncation, over the ids that the
logits have. What decides the order of the alternatives is the logit; of equal ones the lowest id
comes first, so the first alternative is the greedy token.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_BLOCK_LOGITS = 1 << 22
"""Logits that are worked on at a time, which bounds the memory beside the logits themselves."""

_LOWEST = torch.finfo(torch.float32).min
"""Stands for the logarithm of 0, which no message can carry."""


class Logprobs(NamedTuple):
    """``chosen`` float32 [R]; ``top_ids`` int32 [R, W], best first; ``top`` float32 [R, W]."""

    chosen: npt.NDArray[np.float32]
    top_ids: npt.NDArray[np.int32]
    top: npt.NDArray[np.float32]


def token_logprobs(
    logits: Tensor, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], width: int
) -> Logprobs:
    """Log-probabilities of the tokens ``ids`` [R], each by the row ``rows[r]`` of ``logits``, and
    of that row's ``width`` best ones; W is ``width``, or all ids if there are fewer.

    ``logits`` float32 [N, V], without NaN. All results are finite: a token that the model holds
    impossible (a logit of -inf) has the lowest float32.
    """
    width = min(width, logits.shape[1])
    block = max(1, _BLOCK_LOGITS // logits.shape[1])
    parts = [
        _of_block(logits, rows[start : start + block], ids[start : start + block], width)
        for start in range(0, len(rows), block)
    ]
    if not parts:
        shape = (0, width)
        return Logprobs(np.zeros(0, np.float32), np.zeros(shape, np.int32), np.zeros(shape, "f4"))
    if len(parts) == 1:
        return parts[0]
    return Logprobs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _of_block(
    logits: Tensor, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], width: int
) -> Logprobs:
    some = logits.index_select(0, torch.from_numpy(rows).to(logits.device))
    chosen_ids = torch.from_numpy(ids).to(logits.device)[:, None]
    wanted = torch.cat((chosen_ids, _best(some, width)), dim=1)
    found = some.log_softmax(dim=-1).gather(1, wanted).clamp_(min=_LOWEST).cpu().numpy()
    top_ids = wanted[:, 1:].to(torch.int32).cpu().numpy()
    return Logprobs(found[:, 0], top_ids, found[:, 1:])


def _best(logits: Tensor, width: int) -> Tensor:
    """Ids of the ``width`` highest logits, equal ones by the lower id: int64 [R, width].

    topk does not say which of equal values it takes. So it is asked for one more: where that is
    lower than the last one wanted, there is no choice, and the order is all that is left to settle.
    """
    if width == 0:
        return torch.empty((len(logits), 0), dtype=torch.int64, device=logits.device)
    values, ids = logits.topk(min(width + 1, logits.shape[1]), dim=-1)
    ids = ids[:, :width].sort(dim=-1).values
    order = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True).indices
    ids = ids.gather(1, order)
    tied = (values[:, width - 1 : -1] == values[:, width:]).any(dim=-1)
    if bool(tied.any()):
        ids[tied] = _best_by_keys(logits[tied], width)
    return ids


def _best_by_keys(logits: Tensor, width: int) -> Tensor:
    """:func:`_best` by keys that are all different: the logit's bits in the order of integers, then
    the id, counted down. Some ten times slower."""
    vocab_size = logits.shape[1]
    bits = (logits + 0.0).view(torch.int32)  # the sum makes 0 of -0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    countdown = torch.arange(vocab_size - 1, -1, -1, device=logits.device)
    keys = (ordered * vocab_size).add_(countdown)
    return keys.topk(width, dim=-1).values.remainder_(vocab_size).neg_().add_(vocab_size - 1)
