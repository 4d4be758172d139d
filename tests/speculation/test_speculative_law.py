"""Whole speculative loops of the default rule on Markov chains."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from speculation.markov import (
    Loop,
    chain,
    count_sequences,
    exact_law,
    g_test,
    shared_gumbel_acceptance,
)

from pdv_mp.sampling_params import SamplingParams
from pdv_mp.speculation.acceptance import accept
from pdv_mp.speculation.sampling import SamplingTable, processed_logprobs, sample

LAWS = list(itertools.product((0.5, 1.0, 1.3), (0, 2, 3), (1.0, 0.8)))


@pytest.mark.parametrize("index", range(len(LAWS)))
def test_sequences_follow_the_exact_joint_law(index: int) -> None:
    temperature, top_k, top_p = LAWS[index]
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    vocab_size, length = (3, 5) if index % 2 else (5, 3)
    target, draft = chain(vocab_size, 100 + index), chain(vocab_size, 200 + index)
    loop = Loop(target, draft, params)
    text = loop.run(range(20_000 * index, 20_000 * (index + 1)), length, k=1 + index % 4)
    counts = count_sequences(text, vocab_size)
    assert 0 < loop.accepted < loop.drafted
    assert g_test(counts, exact_law(target, params, length)) > 0.01


def test_the_law_test_sees_a_wrong_law() -> None:
    """Sampled at one temperature, it must not pass for another that is near."""
    loop = Loop(chain(4, 1), chain(4, 2), SamplingParams(temperature=1.0))
    text = loop.run(range(20_000), 3, k=2)
    counts = count_sequences(text, 4)
    assert g_test(counts, exact_law(chain(4, 1), SamplingParams(temperature=1.0), 3)) > 0.01
    assert g_test(counts, exact_law(chain(4, 1), SamplingParams(temperature=1.04), 3)) < 0.01


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=3, top_p=0.9),
        SamplingParams(temperature=1.3, min_p=0.1),
    ],
    ids=["greedy", "plain", "top", "min_p"],
)
def test_speculation_changes_no_token(params: SamplingParams) -> None:
    """The same text for every draft length and drafter, a drafter with misplaced noise included."""
    target = chain(5, 11)
    seeds, length = range(-200, 200), 23
    plain = Loop(target, target, params).run(seeds, length, k=0)
    for k in range(1, 9):
        for drafter in (target, chain(5, 12), -target, target * 0.5):
            loop = Loop(target, drafter, params)
            assert np.array_equal(loop.run(seeds, length, k), plain)
            if drafter is target:
                assert loop.accepted == loop.drafted > 0
    shifted = Loop(target, target, params)
    shifted.draft_shift = 1
    assert np.array_equal(shifted.run(seeds, length, 4), plain)
    assert params.temperature == 0 or shifted.accepted < shifted.drafted


@pytest.mark.parametrize("vocab_size", [3, 5, 200])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=20),
        SamplingParams(temperature=1.3, top_p=0.8),
        SamplingParams(temperature=1.0, top_k=30, top_p=0.9, min_p=0.02),
    ],
    ids=["plain", "top_k", "top_p", "all"],
)
def test_acceptance_is_what_the_theory_says(vocab_size: int, params: SamplingParams) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    target = torch.randn(1, vocab_size, generator=generator) * 1.5
    draft = target + torch.randn(1, vocab_size, generator=generator) * 0.7
    table = SamplingTable(1)
    table.set(0, params, 1234)
    trials = 20_000
    rows = table.rows(np.zeros(trials, np.int64), np.arange(trials))
    own = sample(target.expand(trials, -1), rows).numpy()
    proposed = sample(draft.expand(trials, -1), rows).numpy()
    verdict = accept(proposed[:, None], np.ones(trials, int), np.repeat(own, 2))
    one = rows.select(np.array([0]))
    p, q = (processed_logprobs(x, one)[0].exp().double().numpy() for x in (target, draft))
    expected = shared_gumbel_acceptance(p, q)
    overlap = np.minimum(p, q).sum()
    assert overlap / (2 - overlap) <= expected + 1e-9 <= overlap + 2e-9
    spread = 4 * np.sqrt(expected * (1 - expected) / trials)
    assert abs(verdict.accepted.mean() - expected) < spread + 1e-9
