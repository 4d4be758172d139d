"""Log-probabilities and their alternatives against torch's own functions, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdv_mp.speculation import logprobs
from pdv_mp.speculation.logprobs import token_logprobs

LOWEST = float(torch.finfo(torch.float32).min)


def by_hand(logits: list[float], width: int) -> list[int]:
    """The best ids, equal ones by the lower id."""
    return sorted(range(len(logits)), key=lambda id: (-logits[id], id))[:width]


@pytest.mark.parametrize("vocab_size", [7, 300, 50_000])
def test_agrees_with_torch(vocab_size: int) -> None:
    logits = 9 * torch.randn(40, vocab_size, generator=torch.Generator().manual_seed(0))
    rows = np.array([3, 3, 39, 0, 17], np.int64)
    ids = np.array([0, vocab_size - 1, 5, 2, 1], np.int64)
    found = token_logprobs(logits, rows, ids, 20)
    width = min(20, vocab_size)
    expected = logits.double().log_softmax(dim=-1)[rows]
    best = expected.topk(width, dim=-1)
    assert found.chosen.dtype == found.top.dtype == np.float32
    assert found.top_ids.dtype == np.int32
    assert np.array_equal(found.top_ids, best.indices.numpy())
    assert np.allclose(found.top, best.values.numpy(), atol=1e-5, rtol=0)
    assert np.allclose(found.chosen, expected.numpy()[range(5), ids], atol=1e-5, rtol=0)


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(
        st.lists(
            st.sampled_from([-np.inf, -2.5, -1.0, -0.0, 0.0, 1e-30, 1.0, 3.0e38]),
            min_size=6,
            max_size=6,
        ),
        min_size=1,
        max_size=4,
    ),
    width=st.integers(0, 8),
)
def test_equal_logits_come_by_the_lowest_id(data: list[list[float]], width: int) -> None:
    for row in data:
        row[2] = 0.5  # not everything is impossible
    ids = np.arange(len(data))
    with torch.inference_mode():  # as the model's forward does
        logits = torch.tensor(data)
    found = token_logprobs(logits, np.arange(len(data)), ids, width)
    expected = [by_hand(row, width) for row in data]
    assert found.top_ids.shape == (len(data), min(width, 6))
    assert found.top_ids.tolist() == expected
    assert np.isfinite(found.top).all()
    assert np.isfinite(found.chosen).all()
    for row, values, best in zip(data, found.top.tolist(), expected, strict=True):
        assert [value == LOWEST for value in values] == [row[id] == -np.inf for id in best]


def test_the_first_alternative_is_the_greedy_token() -> None:
    logits = torch.randint(-3, 3, (50, 1000), generator=torch.Generator().manual_seed(1)).float()
    found = token_logprobs(logits, np.arange(50), np.zeros(50, np.int64), 3)
    assert found.top_ids[:, 0].tolist() == logits.max(dim=-1).indices.tolist()
    assert (np.diff(found.top_ids) > 0).all(), "there are more than three best ones in every row"


def test_without_alternatives_and_without_rows() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    found = token_logprobs(logits, np.array([1, 0]), np.array([0, 0]), 0)
    assert found.top_ids.shape == found.top.shape == (2, 0)
    expected = logits.log_softmax(dim=-1)[:, 0].flip(0)
    assert found.chosen.tolist() == pytest.approx(expected.tolist())
    none = np.zeros(0, np.int64)
    nothing = token_logprobs(logits, none, none, 2)
    assert nothing.chosen.shape == (0,)
    assert nothing.top_ids.shape == nothing.top.shape == (0, 2)


def test_a_token_that_cannot_occur_has_a_finite_number() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 1.0]])
    found = token_logprobs(logits, np.array([0]), np.array([1]), 3)
    assert found.chosen.tolist() == [LOWEST]
    assert found.top_ids.tolist() == [[0, 2, 1]]
    assert found.top.tolist() == [[pytest.approx(-np.log(2))] * 2 + [LOWEST]]


def test_work_in_blocks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(23, 50, generator=torch.Generator().manual_seed(2))
    rows, ids = np.arange(23)[::-1].copy(), np.arange(23)
    whole = token_logprobs(logits, rows, ids, 4)
    for size in (1, 100, 550):
        monkeypatch.setattr(logprobs, "_BLOCK_LOGITS", size)
        for part, column in zip(token_logprobs(logits, rows, ids, 4), whole, strict=True):
            assert np.array_equal(part, column)
