"""The input of one forward pass: new tokens of several sequences, flattened without padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64Array = NDArray[np.int64]


def to_device(array: Int64Array, device: torch.device) -> torch.Tensor:
    """An int64 tensor of `array` on `device`; on the CPU it shares the array's memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """A ragged batch of B sequences and N = sum(query_lens) rows.

    Row r of sequence b is flat row sum(query_lens[:b]) + r, at position start_positions[b] + r of
    the sequence in slot slots[b]; it attends to positions 0 .. its own. `logit_rows` are the flat
    rows whose logits are wanted, None for all.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    logit_rows: torch.Tensor | None
    query_lens: Int64Array
    start_positions: Int64Array
    slots: Int64Array
    row_positions: Int64Array
    row_slots: Int64Array
    device: torch.device

    @property
    def num_rows(self) -> int:
        return len(self.row_positions)

    @property
    def num_sequences(self) -> int:
        return len(self.slots)

    @property
    def context(self) -> int:
        """Tokens of the longest sequence, with those of the batch."""
        return int((self.start_positions + self.query_lens).max())

    @classmethod
    def build(
        cls,
        token_ids: Int64Array,
        query_lens: Int64Array,
        start_positions: Int64Array,
        slots: Int64Array,
        logit_rows: Int64Array | None,
        device: torch.device | str,
    ) -> ForwardBatch:
        """Check the columns against each other and move what the kernels need to `device`.

        token_ids: [N]; query_lens, start_positions, slots: [B]; logit_rows: [M] or None. Raises
        ValueError for columns that do not fit together, an empty sequence or a slot used twice.
        """
        device = torch.device(device)
        query_lens = np.asarray(query_lens, dtype=np.int64)
        start_positions = np.asarray(start_positions, dtype=np.int64)
        slots = np.asarray(slots, dtype=np.int64)
        num_sequences, num_rows = len(query_lens), len(token_ids)
        if not num_sequences == len(start_positions) == len(slots) or not num_sequences:
            raise ValueError("query_lens, start_positions and slots must have one entry a sequence")
        if query_lens.min() < 1 or start_positions.min() < 0 or slots.min() < 0:
            raise ValueError("query lengths must be positive, positions and slots not negative")
        if len(set(slots.tolist())) != num_sequences:
            raise ValueError(f"a slot appears twice in the batch: {slots.tolist()}")
        ends = np.cumsum(query_lens)
        if ends[-1] != num_rows:
            raise ValueError(f"{num_rows} token ids for query lengths that add up to {ends[-1]}")
        if (
            logit_rows is not None
            and len(logit_rows)
            and not 0 <= np.min(logit_rows) <= np.max(logit_rows) < num_rows
        ):
            raise ValueError(f"logit_rows reach outside of the batch's {num_rows} rows")
        row_positions = np.arange(num_rows) + np.repeat(
            start_positions - (ends - query_lens), query_lens
        )
        return cls(
            token_ids=to_device(token_ids, device),
            positions=to_device(row_positions, device),
            logit_rows=None if logit_rows is None else to_device(logit_rows, device),
            query_lens=query_lens,
            start_positions=start_positions,
            slots=slots,
            row_positions=row_positions,
            row_slots=np.repeat(slots, query_lens),
            device=device,
        )

    def advance(self, token_ids: Int64Array) -> ForwardBatch:
        """The batch after this one: one new token of every sequence, at its next position.

        token_ids: [B]. All logits are wanted. The columns are not checked again.
        """
        positions = self.start_positions + self.query_lens
        return ForwardBatch(
            token_ids=to_device(token_ids, self.device),
            positions=to_device(positions, self.device),
            logit_rows=None,
            query_lens=np.ones_like(self.query_lens),
            start_positions=positions,
            slots=self.slots,
            row_positions=positions,
            row_slots=self.slots,
            device=self.device,
        )
