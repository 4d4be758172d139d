"""Rejection sampling: its law, its rate, its special cases, and that the tests see it broken."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from speculation.markov import (
    START,
    Loop,
    chain,
    count_sequences,
    exact_law,
    exact_laws,
    g_test,
    shared_gumbel_acceptance,
)

from pdv_mp.sampling_params import SamplingParams
from pdv_mp.speculation import rejection
from pdv_mp.speculation.acceptance import Acceptance
from pdv_mp.speculation.noise import Purpose, gumbel, row_keys, uniforms
from pdv_mp.speculation.rejection import RejectionSampling, residual
from pdv_mp.speculation.sampling import SamplingRows, SamplingTable, processed_logprobs, sample
from pdv_mp.speculation.shared_gumbel import SharedGumbel

LEVEL = 0.01
"""Share of right laws that a test may take for wrong ones, all its comparisons together."""

SETTINGS = [
    SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for temperature, top_k, top_p, min_p in itertools.product(
        (0.5, 1.0, 1.3), (0, 2, 3), (1.0, 0.8), (0.0, 0.1)
    )
]


def near(target: torch.Tensor, seed: int) -> torch.Tensor:
    """A draft that guesses a good part right, so that cycles reach their ends."""
    generator = torch.Generator().manual_seed(seed)
    return target + torch.randn(target.shape, generator=generator) * 0.6


def one_cycle(
    target: torch.Tensor, draft: torch.Tensor, params: SamplingParams, trials: int, k: int
) -> np.ndarray:
    """What many requests emit in one cycle of k drafts: int64 [trials, k + 1], then -1."""
    table = SamplingTable(trials)
    for slot in range(trials):
        table.set(slot, params, seed=slot)
    seen: list[tuple[np.ndarray, Acceptance]] = []

    class Watched(RejectionSampling):
        def judge(self, draft_ids, *others):  # type: ignore[no-untyped-def]
            seen.append((draft_ids, super().judge(draft_ids, *others)))
            raise StopIteration

    loop = Loop(target, draft, params, Watched())
    with pytest.raises(StopIteration):
        loop.run(range(trials), length=k + 1, k=k)
    ((drafts, (accepted, next_ids)),) = seen
    emitted = np.where(np.arange(k) < accepted[:, None], drafts, -1)
    emitted = np.column_stack([emitted, np.full(trials, -1)])
    emitted[np.arange(trials), accepted] = next_ids
    return emitted


def test_each_token_of_a_cycle_follows_the_exact_law() -> None:
    """The j-th emitted token given the one before it, for all j from the first to the bonus."""
    vocab_size, k, trials = 5, 3, 10_000
    levels = []
    for index, params in enumerate(SETTINGS):
        target = chain(vocab_size, 300 + index)
        emitted = one_cycle(target, near(target, 400 + index), params, trials, k)
        before = np.column_stack([np.full(trials, START), emitted[:, :-1]])
        laws = exact_laws(target, params)
        for place in range(k + 1):
            there = emitted[:, place] >= 0
            given = np.bincount(before[there, place], minlength=vocab_size)
            pairs = before[there, place] * vocab_size + emitted[there, place]
            counts = np.bincount(pairs, minlength=vocab_size**2)
            assert there.sum() > trials / 20
            levels.append(conditional_g_test(counts.reshape(vocab_size, vocab_size), given, laws))
    assert len(levels) == 4 * len(SETTINGS)
    assert min(levels) > LEVEL / len(levels)
    # Right laws give evenly spread p-values; those of one possible token alone are 1.
    assert stats.kstest([level for level in levels if level < 1], "uniform").pvalue > LEVEL


def conditional_g_test(counts: np.ndarray, given: np.ndarray, laws: np.ndarray) -> float:
    """p-value of tokens counted [V, V] by the token before them, each row under its own law."""
    assert counts[laws == 0].sum() == 0
    statistic = freedom = 0.0
    for observed, total, law in zip(counts, given, laws, strict=True):
        wanted = total * law
        rare = wanted < 5
        observed = np.append(observed[~rare], observed[rare].sum())
        wanted = np.append(wanted[~rare], wanted[rare].sum())
        hit = observed > 0
        statistic += 2 * (observed[hit] * np.log(observed[hit] / wanted[hit])).sum()
        freedom += max(0, (wanted > 0).sum() - 1)
    return float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0


LAWS = list(itertools.product((0.5, 1.0, 1.3), (0, 2, 3), (1.0, 0.8)))


def sequence_level(index: int, seeds: int, k: int | None = None) -> float:
    """p-value of whole sequences of one of LAWS."""
    temperature, top_k, top_p = LAWS[index]
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    vocab_size, length = (3, 5) if index % 2 else (5, 3)
    target, draft = chain(vocab_size, 100 + index), chain(vocab_size, 200 + index)
    loop = Loop(target, draft, params, RejectionSampling())
    text = loop.run(range(seeds * index, seeds * (index + 1)), length, k or 1 + index % 4)
    assert 0 < loop.accepted < loop.drafted
    counts = count_sequences(text, vocab_size)
    return g_test(counts, exact_law(target, params, length))


def test_sequences_follow_the_exact_joint_law() -> None:
    levels = [sequence_level(index, seeds=20_000) for index in range(len(LAWS))]
    assert min(levels) > LEVEL / len(LAWS)
    assert stats.kstest(levels, "uniform").pvalue > LEVEL


def corrected_from_p(p: torch.Tensor, q: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    del q, ids
    return p.clone()


def one_purpose(seeds: np.ndarray, positions: np.ndarray, purpose: Purpose) -> np.ndarray:
    del purpose
    return row_keys(seeds, positions)


def lenient(p: torch.Tensor, q: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    u = torch.from_numpy(uniforms(rows.seeds, rows.positions, Purpose.ACCEPTANCE))
    return u * q <= 1.1 * p


def strict_where_p_is_small(p: torch.Tensor, q: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    u = torch.from_numpy(uniforms(rows.seeds, rows.positions, Purpose.ACCEPTANCE))
    return torch.maximum(u, torch.tensor(0.1)) * q <= p


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("residual", corrected_from_p),
        ("row_keys", one_purpose),
        ("_keeps", lenient),
        ("_keeps", strict_where_p_is_small),
    ],
    ids=["no residual", "draft and correction share noise", "lenient", "strict where p is small"],
)
def test_the_law_tests_see_a_broken_rule(name: str, broken: Callable[..., object]) -> None:
    index = LAWS.index((1.0, 0, 1.0))
    with mock.patch.object(rejection, name, broken):
        assert sequence_level(index, seeds=20_000, k=2) < LEVEL / len(LAWS)


def test_the_law_test_sees_a_draft_law_that_is_not_the_drafts() -> None:
    """q without the truncation that the draft was drawn with."""

    class Untruncated(RejectionSampling):
        def propose(self, logits, rows):  # type: ignore[no-untyped-def]
            return super().propose(logits, rows)._replace(law=logits.softmax(-1))

    params = SamplingParams(temperature=1.0, top_k=3)
    target, draft = chain(5, 1), chain(5, 2)
    for rule, right in ((RejectionSampling(), True), (Untruncated(), False)):
        text = Loop(target, draft, params, rule).run(range(20_000), 3, k=2)
        level = g_test(count_sequences(text, 5), exact_law(target, params, 3))
        assert (level > LEVEL) == right


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
    """sum(min(p, q)), which no rule exceeds and shared noise does not reach."""
    target = chain(vocab_size, vocab_size)[:1]
    draft = near(target, 7)
    trials = 20_000
    rows = rows_of([params], trials)
    rates = {}
    for rule in (RejectionSampling(), SharedGumbel()):
        ids, law = rule.propose(draft.expand(trials, -1), rows)
        laws = None if law is None else law[:, None]
        both = rows.select(np.repeat(np.arange(trials), 2))
        ones = np.ones(trials, np.int64)
        verdict = rule.judge(ids.numpy()[:, None], ones, laws, target.expand(2 * trials, -1), both)
        rates[type(rule)] = verdict.accepted.mean()
    one = rows.select(np.array([0]))
    p, q = (processed_logprobs(x, one)[0].exp().double().numpy() for x in (target, draft))
    overlap = np.minimum(p, q).sum()
    spread = 4 * math.sqrt(overlap * max(0.0, 1 - overlap) / trials)
    assert abs(rates[RejectionSampling] - overlap) < spread + 1e-6
    assert shared_gumbel_acceptance(p, q) <= overlap + 1e-6
    assert rates[SharedGumbel] <= rates[RejectionSampling] + 2 * spread


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.0])
def test_more_drafts_are_kept_than_with_shared_noise(temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    target = chain(30, 5)
    loops = [
        Loop(target, near(target, 6), params, rule)
        for rule in (RejectionSampling(), SharedGumbel())
    ]
    for loop in loops:
        loop.run(range(2000), length=24, k=4)
    rates = [loop.accepted / loop.drafted for loop in loops]
    assert rates[0] > rates[1] + 0.01


def rows_of(params: list[SamplingParams], positions: int) -> SamplingRows:
    """A row per request and position 0, 1, 2 ...; a request's seed is its index."""
    table = SamplingTable(len(params))
    for slot, one in enumerate(params):
        table.set(slot, one, seed=slot)
    slots = np.repeat(np.arange(len(params)), positions)
    return table.rows(slots, np.tile(np.arange(positions), len(params)))


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, list[SamplingParams]]:
    """The verifier's and the draft's logits [B, K + 1, V], draft lengths, and parameters."""
    size, width = draw(st.integers(1, 6)), draw(st.integers(0, 5))
    vocab_size = draw(st.sampled_from([2, 3, 7, 70]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    target = torch.randn(size, width + 1, vocab_size, generator=generator) * 2
    distance = draw(st.sampled_from([0.0, 0.5, 3.0]))
    draft = target + torch.randn(target.shape, generator=generator) * distance
    lens = draw(st.lists(st.integers(0, width), min_size=size, max_size=size))
    params = st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.3]),
        top_k=st.sampled_from([0, 0, 1, 2, 5]),
        top_p=st.sampled_from([1.0, 0.9, 0.3]),
        min_p=st.sampled_from([0.0, 0.0, 0.1]),
    )
    return target, draft, np.array(lens), draw(st.lists(params, min_size=size, max_size=size))


def proposals(
    rule: RejectionSampling, draft: torch.Tensor, params: list[SamplingParams]
) -> tuple[np.ndarray, torch.Tensor]:
    """Drafts [B, K] and laws [B, K, V] at every position but the last."""
    size, width, vocab_size = draft.shape[0], draft.shape[1] - 1, draft.shape[2]
    ids, law = rule.propose(draft[:, :-1].reshape(-1, vocab_size), rows_of(params, width))
    law = draft.new_full((size * width, vocab_size), torch.nan) if law is None else law
    return ids.cpu().numpy().reshape(size, width), law.reshape(size, width, vocab_size)


def judged(
    rule: RejectionSampling | SharedGumbel,
    ids: np.ndarray,
    lens: np.ndarray,
    laws: torch.Tensor | None,
    target: torch.Tensor,
    params: list[SamplingParams],
) -> list[tuple[int, int]]:
    used = (np.arange(target.shape[1]) <= lens[:, None]).ravel()
    rows = rows_of(params, target.shape[1]).select(np.flatnonzero(used))
    logits = target.reshape(-1, target.shape[2])[torch.from_numpy(used).to(target.device)]
    accepted, next_ids = rule.judge(ids, lens, laws, logits, rows)
    assert accepted.dtype == next_ids.dtype == np.int64
    return list(zip(accepted.tolist(), next_ids.tolist(), strict=True))


def by_hand(
    drafts: list[int], laws: torch.Tensor, logits: torch.Tensor, rows: SamplingRows
) -> tuple[int, int]:
    """The rule for one request, step by step."""
    for place, draft in enumerate(drafts):
        row = rows.select(np.array([place]))
        p = processed_logprobs(logits[place][None], row)[0].exp()
        u = float(uniforms(row.seeds, row.positions, Purpose.ACCEPTANCE)[0])
        if row.all_greedy:
            if int(logits[place].argmax()) == draft:
                continue
            return place, int(logits[place].argmax())
        if p[draft] > 0 and u * float(laws[place, draft]) <= float(p[draft]):
            continue
        left = (p - laws[place]).clamp(min=0)
        left = left if left.sum() > 0 else p
        noise = gumbel(torch.from_numpy(row_keys(row.seeds, row.positions)), len(p))[0]
        return place, int((left.log() + noise).argmax())
    row = rows.select(np.array([len(drafts)]))
    return len(drafts), int(sample(logits[len(drafts)][None], row))


@settings(max_examples=300, deadline=None)
@given(batches())
def test_agrees_with_the_rule_one_by_one(
    batch: tuple[torch.Tensor, torch.Tensor, np.ndarray, list[SamplingParams]],
) -> None:
    """Mixed batches of greedy and sampled rows, ragged lengths down to none."""
    target, draft, lens, params = batch
    rule = RejectionSampling()
    ids, laws = proposals(rule, draft, params)
    rows = rows_of(params, target.shape[1])
    expected = []
    for request, length in enumerate(lens):
        own = rows.select(np.arange(target.shape[1]) + request * target.shape[1])
        expected.append(
            by_hand(ids[request, :length].tolist(), laws[request], target[request], own)
        )
    padded = np.where(np.arange(ids.shape[1]) < lens[:, None], ids, -1)
    unread = torch.from_numpy(np.arange(ids.shape[1]) >= lens[:, None])
    unread |= torch.tensor([one.temperature == 0 for one in params])[:, None]
    laws[unread] = torch.nan
    assert judged(rule, padded, lens, laws, target, params) == expected


@settings(max_examples=100, deadline=None)
@given(batches())
def test_greedy_rows_are_judged_as_by_the_default_rule(
    batch: tuple[torch.Tensor, torch.Tensor, np.ndarray, list[SamplingParams]],
) -> None:
    target, draft, lens, params = batch
    ids, laws = proposals(RejectionSampling(), draft, params)
    ours = judged(RejectionSampling(), ids, lens, laws, target, params)
    theirs = judged(SharedGumbel(), ids, lens, None, target, params)
    for one, other, parameters in zip(ours, theirs, params, strict=True):
        assert one == other or parameters.temperature > 0
    greedy = [SamplingParams()] * len(params)
    ids, _ = proposals(RejectionSampling(), draft, greedy)
    assert judged(RejectionSampling(), ids, lens, None, target, greedy) == judged(
        SharedGumbel(), ids, lens, None, target, greedy
    )


def test_greedy_drafts_carry_no_law() -> None:
    rows = rows_of([SamplingParams()], 3)
    ids, law = RejectionSampling().propose(chain(4, 1)[:3], rows)
    assert law is None
    assert torch.equal(ids, chain(4, 1)[:3].argmax(-1))


def test_drafts_follow_the_law_that_they_carry() -> None:
    params = SamplingParams(temperature=0.9, top_k=4)
    trials = 20_000
    logits = chain(6, 3)[:1].expand(trials, -1)
    ids, law = RejectionSampling().propose(logits, rows_of([params], trials))
    assert law is not None
    assert torch.equal(law, processed_logprobs(logits, rows_of([params], trials)).exp())
    assert g_test(np.bincount(ids.numpy(), minlength=6), law[0].double().numpy()) > LEVEL


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
def test_equal_laws_keep_every_draft(temperature: float) -> None:
    params = [SamplingParams(temperature=temperature, top_p=0.9)] * 50
    target = torch.randn(50, 6, 40, generator=torch.Generator().manual_seed(1))
    ids, laws = proposals(RejectionSampling(), target, params)
    lens = np.arange(50) % 6
    found = judged(RejectionSampling(), ids, lens, laws, target, params)
    assert [accepted for accepted, _ in found] == lens.tolist()


def test_without_drafts_it_is_plain_sampling() -> None:
    """Also for the rows without drafts of a batch with drafts, and for every bonus."""
    params = [SamplingParams(temperature=1.0, top_k=5), SamplingParams(temperature=0.7)] * 20
    target = torch.randn(40, 4, 30, generator=torch.Generator().manual_seed(2))
    ids, laws = proposals(RejectionSampling(), near(target, 3), params)
    own = sample(target.reshape(-1, 30), rows_of(params, 4)).reshape(40, 4).tolist()
    for lens in (np.zeros(40, np.int64), np.arange(40) % 4):
        found = judged(RejectionSampling(), ids, lens, laws, target, params)
        for (accepted, next_id), length, tokens in zip(found, lens, own, strict=True):
            assert next_id == tokens[accepted] or accepted < length
    none = np.zeros((40, 0), np.int64)
    zeros = np.zeros(40, np.int64)
    first = judged(RejectionSampling(), none, zeros, None, target[:, :1], params)
    at_first = sample(target[:, 0], rows_of(params, 1)).tolist()
    assert first == [(0, token) for token in at_first]


def test_a_draft_outside_the_support_is_never_kept() -> None:
    """However small u * q is, zero included; the correction lies in the support."""
    params = [SamplingParams(temperature=1.0, top_k=2)] * 200
    target = torch.arange(6.0).expand(200, 2, 6)
    for probability in (1.0, 0.3, 1e-45, 0.0):
        laws = torch.zeros(200, 1, 6)
        laws[:, :, 0] = probability
        laws[:, :, 5] = 1 - probability
        zeros, ones = np.zeros((200, 1), np.int64), np.ones(200, np.int64)
        found = judged(RejectionSampling(), zeros, ones, laws, target, params)
        assert {accepted for accepted, _ in found} == {0}
        assert {next_id for _, next_id in found} <= {4, 5}


def test_a_residual_that_rounding_made_zero_is_p() -> None:
    p = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    ids = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(residual(p, p, ids), p)
    assert torch.equal(residual(p, p * 1.0001, ids), p)
    assert residual(p, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), ids).tolist() == [
        [0, 0.5],
        [0.25, 0],
    ]
    params = [SamplingParams(temperature=1.0)] * 300
    target = torch.randn(300, 2, 5, generator=torch.Generator().manual_seed(5))
    ids_, laws = proposals(RejectionSampling(), target, params)
    nearly_one = np.full(300, 1 - 2.0**-53)
    with mock.patch.object(rejection, "uniforms", return_value=nearly_one):
        ones = np.ones(300, np.int64)
        found = judged(RejectionSampling(), ids_, ones, laws * 1.0001, target, params)
    own = sample(target[:, 0], rows_of(params, 2).select(2 * np.arange(300))).tolist()
    assert found == [(0, token) for token in own]


def test_a_certain_draft_is_kept_with_its_probability() -> None:
    """Drafts without a law: x with probability p(x), else p without x; as with a one-hot law."""
    trials, draft = 20_000, 2
    target = chain(6, 8)[:1].expand(trials, 2, 6)
    params = [SamplingParams(temperature=1.0, top_k=5)] * trials
    ids, ones = np.full((trials, 1), draft), np.ones(trials, np.int64)
    found = judged(RejectionSampling(), ids, ones, None, target, params)
    one_hot = torch.zeros(trials, 1, 6)
    one_hot[:, :, draft] = 1.0
    assert judged(RejectionSampling(), ids, ones, one_hot, target, params) == found
    law = processed_logprobs(target[:1, 0], rows_of(params[:1], 1))[0].exp().double().numpy()
    first = [draft if accepted else next_id for accepted, next_id in found]
    assert g_test(np.bincount(first, minlength=6), law) > LEVEL
    kept = sum(accepted for accepted, _ in found)
    assert stats.binomtest(kept, trials, law[draft]).pvalue > LEVEL
    assert all(next_id != draft for accepted, next_id in found if not accepted)


def test_the_batch_of_a_request_does_not_matter() -> None:
    params = [
        SamplingParams(temperature=t, top_k=k, top_p=p)
        for t in (0.0, 0.7, 1.0)
        for k in (0, 9)
        for p in (0.8, 1.0)
    ] * 4
    target = torch.randn(48, 5, 500, generator=torch.Generator().manual_seed(6)) * 3
    ids, laws = proposals(RejectionSampling(), near(target, 7), params)
    lens = np.arange(48) % 5
    together = judged(RejectionSampling(), ids, lens, laws, target, params)
    rows = rows_of(params, 5)
    for request in range(48):
        used = np.arange(lens[request] + 1)
        alone = RejectionSampling().judge(
            ids[request : request + 1],
            lens[request : request + 1],
            laws[request : request + 1],
            target[request, : len(used)],
            rows.select(5 * request + used),
        )
        assert together[request] == (int(alone.accepted[0]), int(alone.next_ids[0]))


def test_shapes_that_do_not_belong_together() -> None:
    rows = rows_of([SamplingParams(temperature=1.0)], 4)
    ids, laws = np.zeros((1, 2), np.int64), torch.full((1, 2, 5), 0.2)
    for lens, num_rows in (([2], 4), ([3], 4), ([2, 2], 4), ([1], 3)):
        with pytest.raises(ValueError, match=r"draft_lens|rows of the verifier"):
            RejectionSampling().judge(
                ids,
                np.array(lens),
                laws,
                torch.zeros(num_rows, 5),
                rows.select(np.arange(num_rows)),
            )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_decisions_on_a_gpu() -> None:
    params = [SamplingParams(temperature=1.0, top_k=k) for k in (0, 0, 20)] + [SamplingParams()]
    params = params * 16
    target = torch.randn(64, 5, 2000, generator=torch.Generator().manual_seed(9)) * 3
    rule, draft, lens = RejectionSampling(), near(target, 10), np.arange(64) % 5
    here = judged(rule, *_with(proposals(rule, draft, params), lens), target, params)
    there = judged(rule, *_with(proposals(rule, draft.cuda(), params), lens), target.cuda(), params)
    assert sum(one == other for one, other in zip(here, there, strict=True)) >= 63


def _with(
    proposed: tuple[np.ndarray, torch.Tensor], lens: np.ndarray
) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    return proposed[0], lens, proposed[1]
