"""Whole speculative loops on Markov chains, whose joint law can be written down."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy import stats
from speculation import reference

from pdv_mp.sampling_params import SamplingParams
from pdv_mp.speculation.acceptance import AcceptanceRule, DraftLaws
from pdv_mp.speculation.sampling import SamplingTable
from pdv_mp.speculation.shared_gumbel import SharedGumbel

PROMPT_LENGTH = 3
START = 0


def chain(vocab_size: int, seed: int, spread: float = 1.5) -> torch.Tensor:
    """A "model": the logits [V, V] of the next token given the last."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vocab_size, vocab_size, generator=generator) * spread


class Loop:
    """Generates ``length`` tokens for every slot, as the engine does it, with ragged progress."""

    def __init__(
        self,
        target: torch.Tensor,
        draft: torch.Tensor,
        params: SamplingParams,
        rule: AcceptanceRule | None = None,
    ) -> None:
        self.target, self.draft, self.params = target, draft, params
        self.rule = rule or SharedGumbel()
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
            last = text[slots, base]
            drafts, laws = self._propose(table, slots, base, lens, last)
            accepted, next_ids = self._judge(table, slots, base, lens, last, drafts, laws)
            self.drafted += int(lens.sum())
            self.accepted += int(accepted.sum())
            for step in range(int(lens.max(initial=0))):
                kept = accepted > step
                text[slots[kept], base[kept] + 1 + step] = drafts[kept, step]
            text[slots, base + 1 + accepted] = next_ids
            done[slots] += accepted + 1
        return text[:, 1:]

    def _propose(self, table, slots, base, lens, last):  # type: ignore[no-untyped-def]
        drafts = np.full((len(slots), int(lens.max(initial=0))), -1, np.int64)
        laws = DraftLaws(*drafts.shape)
        for step in range(drafts.shape[1]):
            on = np.flatnonzero(lens > step)
            before = last[on] if step == 0 else drafts[on, step - 1]
            rows = table.rows(slots[on], PROMPT_LENGTH + base[on] + step + self.draft_shift)
            proposed = self.rule.propose(self.draft[before], rows)
            drafts[on, step] = proposed.ids.numpy()
            laws.put(on, step, proposed.law)
        return drafts, laws.tensor

    def _judge(self, table, slots, base, lens, last, drafts, laws):  # type: ignore[no-untyped-def]
        inputs = np.column_stack([last, drafts])
        step = np.arange(inputs.shape[1])
        used = step <= lens[:, None]
        positions = (PROMPT_LENGTH + base[:, None] + step)[used]
        rows = table.rows(np.repeat(slots, lens + 1), positions)
        return self.rule.judge(drafts, lens, laws, self.target[inputs[used]], rows)


def exact_laws(target: torch.Tensor, params: SamplingParams) -> np.ndarray:
    """The next token's law [V, V] given the last, by transformers' warpers in float64."""
    return np.stack([reference.processed_logprobs(row.double(), params).exp() for row in target])


def exact_law(target: torch.Tensor, params: SamplingParams, length: int) -> np.ndarray:
    """The probability of each of V^length sequences, by transformers' warpers in float64."""
    step = exact_laws(target, params)
    law = np.empty((len(target),) * length)
    for sequence in itertools.product(range(len(target)), repeat=length):
        before = (START, *sequence)
        law[sequence] = np.prod([step[a, b] for a, b in itertools.pairwise(before)])
    return law.ravel()


def count_sequences(text: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each of V^length sequences occurs among the rows of ``text``."""
    length = text.shape[1]
    cells = np.ravel_multi_index(tuple(text.T), (vocab_size,) * length)
    return np.bincount(cells, minlength=vocab_size**length)


def g_test(counts: np.ndarray, law: np.ndarray) -> float:
    """p-value of the counts under the law; cells that expect fewer than 5 are put together."""
    assert counts[law == 0].sum() == 0
    expected = law * counts.sum()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    present = wanted > 0
    if present.sum() == 1:
        return 1.0
    result = stats.power_divergence(observed[present], wanted[present], lambda_="log-likelihood")
    return float(result.pvalue)


def shared_gumbel_acceptance(p: np.ndarray, q: np.ndarray) -> float:
    """P(argmax(log p + g) == argmax(log q + g)): sum over x of 1 / sum_y max(p_y/p_x, q_y/q_x)."""
    both = np.flatnonzero((p > 0) & (q > 0))
    return float(sum(1 / np.maximum(p / p[x], q / q[x]).sum() for x in both))
