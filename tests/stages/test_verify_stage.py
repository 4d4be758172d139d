"""Proposals of one cycle are put together with their laws."""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch

from pdv_mp.scheduling.counters import Counters
from pdv_mp.scheduling.sequences import SequenceTable
from pdv_mp.speculation.rejection import RejectionSampling
from pdv_mp.stages.messages import Proposal
from pdv_mp.stages.verify import VerifyStage

VOCABULARY = 5


def stage(committed: list[int]) -> VerifyStage:
    table = SequenceTable(len(committed), 64)
    table.committed[:] = committed
    return VerifyStage(table, mock.Mock(), RejectionSampling(), Counters())


def proposal(slots: list[int], base: list[int], ids: list[list[int]], laws: bool) -> Proposal:
    columns = np.array(ids, np.int64).reshape(len(slots), -1)
    tensor = torch.rand(*columns.shape, VOCABULARY) if laws else None
    lengths = (columns >= 0).sum(axis=1)
    return Proposal(np.array(slots), np.array(base), lengths, columns, tensor)


def test_laws_go_with_their_rows() -> None:
    """Slots ascending; no drafts, certain drafts, and two widths of drafts with laws."""
    verify = stage([9] * 7)
    plain = proposal([1, 4], [9, 9], [[], []], laws=False)
    certain = proposal([6, 2], [9, 9], [[3, 0], [2, -1]], laws=False)
    long = proposal([5, 0], [9, 9], [[1, 2, 3], [4, -1, -1]], laws=True)
    short = proposal([3], [9], [[1]], laws=True)
    for part in (plain, certain, long, short):
        verify.put(part)
    merged = verify.form()
    assert merged is not None
    assert merged.slots.tolist() == list(range(7))
    assert merged.lengths.tolist() == [1, 0, 1, 1, 0, 3, 2]
    assert merged.ids[:, 0].tolist() == [4, -1, 2, 1, -1, 1, 3]
    laws, given, other = merged.laws, long.laws, short.laws
    assert laws is not None
    assert given is not None
    assert other is not None
    assert laws.shape == (7, 3, VOCABULARY)
    assert torch.equal(laws[5], given[0])
    assert torch.equal(laws[0, :1], given[1, :1])
    assert torch.equal(laws[3, :1], other[0])
    assert torch.equal(laws[2, 0], torch.eye(VOCABULARY)[2])
    assert torch.equal(laws[6, :2], torch.eye(VOCABULARY)[[3, 0]])


def test_stale_rows_take_their_laws_with_them() -> None:
    verify = stage([9, 9, 9])
    fresh = proposal([0, 1, 2], [9, 8, 9], [[1, 2], [3, 4], [0, -1]], laws=True)
    verify.put(fresh)
    kept = verify.form()
    assert kept is not None
    assert kept.laws is not None
    assert fresh.laws is not None
    assert kept.slots.tolist() == [0, 2]
    assert torch.equal(kept.laws, fresh.laws[[0, 2]])


def test_without_laws_there_are_none() -> None:
    verify = stage([9, 9])
    verify.put(proposal([0], [9], [[1, 2]], laws=False))
    verify.put(proposal([1], [9], [[]], laws=False))
    merged = verify.form()
    assert merged is not None
    assert merged.laws is None
