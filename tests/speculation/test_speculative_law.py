"""Whole speculative loops on Markov chains whose joint law can be written down."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from speculation import reference

from pdv_mp.sampling_params import SamplingParams
from pdv_mp.speculation.acceptance import accept
from pdv_mp.speculation.sampling import SamplingTable, processed_logprobs, sample

PROMPT_LENGTH = 3
START = 0


def chain(vocab_size: int, seed: int, spread: float = 1.5) -> torch.Tensor:
    """A "model": the logits [V, V] of the next token given the last."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vocab_size, vocab_size, generator=generator) * spread


class Loop:
    """Generates ``length`` tokens for every slot, as the engine does it, with ragged progress."""

    def __init__(self, target: torch.Tensor, draft: torch.Tensor, params: SamplingParams) -> None:
        self.target, self.draft, self.params = target, draft, params
        self.drafted = self.accepted = 0
        self.draft_shift = 0

    def run(self, seeds: range, length: int, k: int) -> np.ndarray:
        table = SamplingTable(len(seeds))
        for slot, seed in enumerate(seeds):
            table.set(slot, self.params, seed)
        text = np.full((len(seeds), length + 1), -1, np.int64)
        text[:, 0] = START
        done = np.zeros(len(seeds), np.int64)
        while (slots := np.flatnonzero(done < length)).size:
            base = done[slots]
            lens = np.minimum(k, length - base - 1)
            drafts = self._propose(table, slots, base, lens, text[slots, base])
            own, starts = self._verify(table, slots, base, lens, text[slots, base], drafts)
            accepted, next_ids = accept(drafts, lens, own)
            self.drafted += int(lens.sum())
            self.accepted += int(accepted.sum())
            for step in range(int(lens.max(initial=0))):
                kept = accepted > step
                text[slots[kept], base[kept] + 1 + step] = drafts[kept, step]
            text[slots, base + 1 + accepted] = next_ids
            assert (next_ids == own[starts + accepted]).all()
            done[slots] += accepted + 1
        return text[:, 1:]

    def _propose(self, table, slots, base, lens, last):  # type: ignore[no-untyped-def]
        drafts = np.full((len(slots), int(lens.max(initial=0))), -1, np.int64)
        for step in range(drafts.shape[1]):
            on = np.flatnonzero(lens > step)
            before = last[on] if step == 0 else drafts[on, step - 1]
            rows = table.rows(slots[on], PROMPT_LENGTH + base[on] + step + self.draft_shift)
            drafts[on, step] = sample(self.draft[before], rows).numpy()
        return drafts

    def _verify(self, table, slots, base, lens, last, drafts):  # type: ignore[no-untyped-def]
        inputs = np.column_stack([last, drafts])
        step = np.arange(inputs.shape[1])
        used = step <= lens[:, None]
        positions = (PROMPT_LENGTH + base[:, None] + step)[used]
        rows = table.rows(np.repeat(slots, lens + 1), positions)
        starts = np.cumsum(lens + 1) - lens - 1
        return sample(self.target[inputs[used]], rows).numpy(), starts


def exact_law(target: torch.Tensor, params: SamplingParams, length: int) -> np.ndarray:
    """The probability of each of V^length sequences, by transformers' warpers in float64."""
    step = np.stack([reference.processed_logprobs(row.double(), params).exp() for row in target])
    law = np.empty((len(target),) * length)
    for sequence in itertools.product(range(len(target)), repeat=length):
        before = (START, *sequence)
        law[sequence] = np.prod([step[a, b] for a, b in itertools.pairwise(before)])
    return law.ravel()


def g_test(counts: np.ndarray, law: np.ndarray) -> float:
    """p-value of the counts under the law; cells that expect fewer than 5 are put together."""
    assert counts[law == 0].sum() == 0
    expected = law * counts.sum()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    present = wanted > 0
    result = stats.power_divergence(observed[present], wanted[present], lambda_="log-likelihood")
    return float(result.pvalue)


LAWS = list(itertools.product((0.5, 1.0, 1.3), (0, 2, 3), (1.0, 0.8)))


@pytest.mark.parametrize("index", range(len(LAWS)))
def test_sequences_follow_the_exact_joint_law(index: int) -> None:
    temperature, top_k, top_p = LAWS[index]
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    vocab_size, length = (3, 5) if index % 2 else (5, 3)
    target, draft = chain(vocab_size, 100 + index), chain(vocab_size, 200 + index)
    loop = Loop(target, draft, params)
    text = loop.run(range(20_000 * index, 20_000 * (index + 1)), length, k=1 + index % 4)
    cells = np.ravel_multi_index(tuple(text.T), (vocab_size,) * length)
    counts = np.bincount(cells, minlength=vocab_size**length)
    assert 0 < loop.accepted < loop.drafted
    assert g_test(counts, exact_law(target, params, length)) > 0.01


def test_the_law_test_sees_a_wrong_law() -> None:
    """Sampled at one temperature, it must not pass for another that is near."""
    loop = Loop(chain(4, 1), chain(4, 2), SamplingParams(temperature=1.0))
    text = loop.run(range(20_000), 3, k=2)
    counts = np.bincount(np.ravel_multi_index(tuple(text.T), (4,) * 3), minlength=64)
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


def closed_form(p: np.ndarray, q: np.ndarray) -> float:
    """P(argmax(log p + g) == argmax(log q + g)): sum over x of 1 / sum_y max(p_y/p_x, q_y/q_x)."""
    both = np.flatnonzero((p > 0) & (q > 0))
    return float(sum(1 / np.maximum(p / p[x], q / q[x]).sum() for x in both))


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
    expected = closed_form(p, q)
    overlap = np.minimum(p, q).sum()
    assert overlap / (2 - overlap) <= expected + 1e-9 <= overlap + 2e-9
    spread = 4 * np.sqrt(expected * (1 - expected) / trials)
    assert abs(verdict.accepted.mean() - expected) < spread + 1e-9
