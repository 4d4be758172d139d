"""Batches of token windows, each a function of the seed and the step alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class WindowSampler:
    """Cuts a token stream into windows, in another random order and phase each epoch.

    ``batch(step)`` needs no state, so a training run that stopped goes on with the very batches
    that it would have seen.
    """

    def __init__(self, stream: NDArray[np.uint16], window: int, rows: int, seed: int) -> None:
        self._stream = stream
        self._window = window
        self._rows = rows
        self._seed = seed
        self._windows = (len(stream) - 1) // window - 1
        if self._windows < rows:
            raise ValueError(
                f"{len(stream)} tokens are too few for {rows} windows of {window} tokens"
            )
        self._epoch = -1
        self._starts: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and next-token targets of ``step``, both int64 ``[rows, window]``."""
        per_epoch = self._windows // self._rows
        epoch, index = divmod(step, per_epoch)
        if epoch != self._epoch:
            generator = np.random.default_rng((self._seed, self._window, epoch))
            phase = int(generator.integers(self._window))
            self._starts = generator.permutation(self._windows) * self._window + phase
            self._epoch = epoch
        starts = self._starts[index * self._rows : (index + 1) * self._rows]
        rows = np.stack([self._stream[start : start + self._window + 1] for start in starts])
        ids = torch.from_numpy(rows.astype(np.int64))
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
