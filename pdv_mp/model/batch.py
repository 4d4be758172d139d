"""The input of one forward pass: new tokens of several sequences, flattened without padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True)
class ForwardBatch:
    """A ragged batch of B sequences and N = sum(query_lens) rows.

    Row r of sequence b is flat row sum(query_lens[:b]) + r, a token of ``ids``, at position
    start_positions[b] + r of the sequence in slot slots[b]; it attends to positions 0 .. its own.
    ``wanted_rows`` are the flat rows whose logits are wanted, None for all. All columns lie on the
    host; on the device they are there once somebody asks.
    """

    ids: Int64Array
    row_positions: Int64Array
    wanted_rows: Int64Array | None
    query_lens: Int64Array
    start_positions: Int64Array
    slots: Int64Array
    device: torch.device

    @classmethod
    def on_device(
        cls,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        logit_rows: torch.Tensor | None,
        device: torch.device,
    ) -> ForwardBatch:
        """A batch that the device alone knows: token_ids, positions int64 [N]."""
        nothing = np.zeros(0, np.int64)
        batch = cls(nothing, nothing, None, nothing, nothing, nothing, device)
        vars(batch).update(token_ids=token_ids, positions=positions, logit_rows=logit_rows)
        return batch

    @cached_property
    def token_ids(self) -> torch.Tensor:
        """:attr:`ids` on the device."""
        return to_device(self.ids, self.device)

    @cached_property
    def positions(self) -> torch.Tensor:
        """:attr:`row_positions` on the device."""
        return to_device(self.row_positions, self.device)

    @cached_property
    def logit_rows(self) -> torch.Tensor | None:
        """:attr:`wanted_rows` on the device."""
        return None if self.wanted_rows is None else to_device(self.wanted_rows, self.device)

    @property
    def num_rows(self) -> int:
        return len(self.row_positions)

    @property
    def num_wanted(self) -> int:
        """Rows whose logits are wanted."""
        return self.num_rows if self.wanted_rows is None else len(self.wanted_rows)

    @property
    def num_sequences(self) -> int:
        return len(self.slots)

    @property
    def row_slots(self) -> Int64Array:
        """The slot of each row: [N]."""
        return np.repeat(self.slots, self.query_lens)

    @property
    def context(self) -> int:
        """Tokens of the longest sequence, with those of the batch."""
        starts: list[int] = self.start_positions.tolist()
        counts: list[int] = self.query_lens.tolist()
        return max(start + count for start, count in zip(starts, counts, strict=True))

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
        """Check the columns against each other.

        token_ids: [N]; query_lens, start_positions, slots: [B]; logit_rows: [M] or None. Raises
        ValueError for columns that do not fit together, an empty sequence or a slot used twice.
        """
        if not isinstance(device, torch.device):
            device = torch.device(device)
        query_lens = np.asarray(query_lens, dtype=np.int64)
        start_positions = np.asarray(start_positions, dtype=np.int64)
        slots = np.asarray(slots, dtype=np.int64)
        num_sequences, num_rows = len(query_lens), len(token_ids)
        if not num_sequences == len(start_positions) == len(slots) or not num_sequences:
            raise ValueError("query_lens, start_positions and slots must have one entry a sequence")
        # Python's numbers: an operation on so short an array is mostly its call.
        counts, used = query_lens.tolist(), slots.tolist()
        if min(counts) < 1 or min(used) < 0 or min(start_positions.tolist()) < 0:
            raise ValueError("query lengths must be positive, positions and slots not negative")
        if len(set(used)) != num_sequences:
            raise ValueError(f"a slot appears twice in the batch: {used}")
        if sum(counts) != num_rows:
            raise ValueError(f"{num_rows} token ids for query lengths that add up to {sum(counts)}")
        if (
            logit_rows is not None
            and len(logit_rows)
            and not 0 <= np.min(logit_rows) <= np.max(logit_rows) < num_rows
        ):
            raise ValueError(f"logit_rows reach outside of the batch's {num_rows} rows")
        row_positions = start_positions
        if num_rows > num_sequences:
            ends = np.cumsum(query_lens)
            row_positions = np.repeat(start_positions + query_lens - ends, query_lens)
            row_positions += np.arange(num_rows)
        return cls(
            ids=np.ascontiguousarray(token_ids, np.int64),
            row_positions=np.ascontiguousarray(row_positions),
            wanted_rows=None if logit_rows is None else np.ascontiguousarray(logit_rows, np.int64),
            query_lens=query_lens,
            start_positions=start_positions,
            slots=slots,
            device=device,
        )

    def advance(self, token_ids: Int64Array) -> ForwardBatch:
        """The batch after this one: one new token of every sequence, at its next position.

        token_ids: [B]. All logits are wanted. The columns are not checked again.
        """
        positions = self.start_positions + self.query_lens
        return ForwardBatch(
            ids=np.ascontiguousarray(token_ids, np.int64),
            row_positions=positions,
            wanted_rows=None,
            query_lens=np.ones_like(self.query_lens),
            start_positions=positions,
            slots=self.slots,
            device=self.device,
        )
