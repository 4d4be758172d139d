"""The oracle itself: lenient exactly where float arithmetic may decide."""

from __future__ import annotations

from dataclasses import replace

import torch
from engine_driver import Request
from oracle import TOLERANCE, scores, shortfall

SAMPLED = Request((1, 2), max_tokens=1, temperature=1.0, seed=5)


def rows(*probabilities: float) -> torch.Tensor:
    return torch.log(torch.tensor([probabilities], dtype=torch.float32))


def test_a_greedy_token_may_miss_the_best_by_the_tolerance() -> None:
    logits = torch.tensor([[1.0, 1.0 - TOLERANCE / 2, 0.9]])
    request = Request((1, 2), max_tokens=1)
    assert [shortfall(request, logits, 0, token) <= TOLERANCE for token in range(3)] == [
        True,
        True,
        False,
    ]


def test_only_the_choice_of_the_shared_noise_is_right() -> None:
    logits = rows(0.4, 0.3, 0.2, 0.1)
    best = int(scores(SAMPLED, logits)[0].argmax())
    right = [token for token in range(4) if shortfall(SAMPLED, logits, 0, token) <= TOLERANCE]
    assert right == [best]


def chosen(request: Request, logits: torch.Tensor) -> set[int]:
    return {
        token
        for seed in range(60)
        for token in range(logits.shape[1])
        if shortfall(replace(request, seed=seed), logits, 0, token) <= TOLERANCE
    }


def test_a_token_beyond_the_nucleus_is_wrong() -> None:
    logits = rows(0.5, 0.3, 0.15, 0.05)
    assert chosen(replace(SAMPLED, top_p=0.8001), logits) == {0, 1, 2}
    assert chosen(replace(SAMPLED, top_p=0.7999), logits) == {0, 1}
    assert chosen(replace(SAMPLED, top_k=3), logits) == {0, 1, 2}
    assert chosen(replace(SAMPLED, min_p=0.2), logits) == {0, 1, 2}


def test_tokens_of_one_probability_at_the_edge_may_stand_for_each_other() -> None:
    logits = rows(0.5, 0.2, 0.2, 0.1)
    assert chosen(replace(SAMPLED, top_p=0.6), logits) == {0, 1, 2}
    assert chosen(replace(SAMPLED, top_k=2), logits) == {0, 1, 2}
