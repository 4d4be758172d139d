"""Ragged batches in flat columns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def total(column: npt.NDArray[np.int64]) -> int:
    """The sum of a column of a batch, in Python's numbers: an operation of numpy on so short an
    array is mostly its call, whose code each step of a model drives out of the caches."""
    return sum(column.tolist())


def ragged_range(
    starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """``concatenate([arange(s, s + n) for s, n in zip(starts, lengths)])`` without the loop."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    offsets: npt.NDArray[np.int64] = np.repeat(starts - (ends - lengths), lengths)
    return offsets + np.arange(total, dtype=np.int64)
