"""Sampling that asks the host for nothing: greedy, or with a temperature and min_p."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pdv_mp.graphs.buffers import Inputs
from pdv_mp.speculation.noise import add_gumbel_, row_keys
from pdv_mp.speculation.sampling import SamplingRows

Fields = dict[str, tuple[tuple[int, ...], torch.dtype]]


def needs_ranking(rows: SamplingRows, vocab_size: int) -> bool:
    """Whether some sampled row has top_k or top_p, which takes as many rounds as it takes."""
    cut = ((rows.top_k > 0) & (rows.top_k < vocab_size)) | (rows.top_p < 1)
    return bool((cut & (rows.temperature > 0)).any())


def sampling_fields(steps: int, rows: int, sampled: bool) -> Fields:
    """Inputs of ``rows`` samples in each of so many steps; parameters are those of a row. Not
    ``sampled``: all are greedy, which takes none."""
    if not sampled:
        return {}
    return {
        "keys": ((steps, rows, 2), torch.int32),
        "temperature": ((rows, 1), torch.float32),
        "log_min_p": ((rows, 1), torch.float32),
        "greedy": ((rows,), torch.bool),
    }


def fill_sampling(inputs: Inputs, index: np.ndarray, rows: SamplingRows, steps: int) -> None:
    """Fill in the parameters of the rows ``index`` [R]; others are greedy.

    ``rows``: the parameters of these at the first step; each step is one position further.
    """
    host = inputs.host
    if "keys" not in host:
        return
    host["greedy"][:] = True
    host["temperature"][:] = 1
    host["log_min_p"][:] = -np.inf
    greedy = rows.temperature == 0
    host["greedy"][index] = greedy
    host["temperature"][index, 0] = np.where(greedy, np.float32(1), rows.temperature)
    with np.errstate(divide="ignore"):
        host["log_min_p"][index, 0] = np.log(rows.min_p)
    for step in range(steps):
        host["keys"][step, index] = row_keys(rows.seeds, rows.positions + step)


def sample_rows(logits: Tensor, inputs: Inputs, step: int, sampled: bool) -> Tensor:
    """One token per row, int64 [R]: the very one that ``speculation.sampling.sample`` gives.

    ``logits`` float32 [R, V]. Not ``sampled``: all rows are greedy.
    """
    best = logits.max(dim=-1).indices
    if not sampled:
        return best
    given = inputs.device
    z = (logits - logits.amax(dim=-1, keepdim=True)).div_(given["temperature"])
    z.masked_fill_(z < given["log_min_p"], -torch.inf)
    drawn = add_gumbel_(z, given["keys"][step]).max(dim=-1).indices
    return torch.where(given["greedy"], best, drawn)
