"""Tokens of an emulated pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pdv_mp.emulation.tokens import EmulatedTokens
from pdv_mp.speculation.sampling import SamplingRows

NOTHING = torch.zeros(1)


def rows(seeds: np.ndarray, positions: np.ndarray) -> SamplingRows:
    count = len(positions)
    return SamplingRows(
        np.zeros(count, np.float32),
        np.zeros(count, np.int64),
        np.ones(count),
        np.zeros(count),
        seeds.astype(np.int64),
        positions.astype(np.int64),
    )


def test_a_token_depends_on_seed_and_position_alone() -> None:
    tokens, count = EmulatedTokens(0.5, 300, (0, 7)), 2000
    seeds, positions = np.arange(count) % 5, np.arange(count) % 41
    ids = tokens.sample(NOTHING, rows(seeds, positions)).numpy()
    by_key: dict[tuple[int, int], int] = {}
    for seed, position, token in zip(seeds.tolist(), positions.tolist(), ids.tolist(), strict=True):
        assert by_key.setdefault((seed, position), token) == token
    assert len(set(by_key.values())) > 100
    assert not {0, 7} & set(ids.tolist())
    assert 0 <= ids.min() <= ids.max() < 300


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.7, 1.0])
def test_drafts_are_kept_as_often_as_the_table_says(acceptance: float) -> None:
    tokens, count = EmulatedTokens(acceptance, 4096, (0,)), 20_000
    given = rows(np.arange(count) // 100, np.arange(count) % 100)
    drafts = tokens.propose(NOTHING, given).ids.numpy()
    share = (drafts == tokens.sample(NOTHING, given).numpy()).mean()
    # Always the same numbers, so this cannot fail by chance; five standard deviations.
    assert abs(share - acceptance) <= 5 * (acceptance * (1 - acceptance) / count) ** 0.5


def test_the_rule_keeps_drafts_up_to_the_first_wrong_one() -> None:
    tokens = EmulatedTokens(0.5, 100, (0,))
    right = tokens.sample(NOTHING, rows(np.full(4, 3), np.arange(10, 14))).numpy()
    drafts = np.array([[right[0], right[1] + 1, right[2]]])
    verdict = tokens.judge(
        drafts, np.array([3]), None, NOTHING, rows(np.full(4, 3), np.arange(10, 14))
    )
    assert verdict.accepted.tolist() == [1]
    assert verdict.next_ids.tolist() == [right[1]]
