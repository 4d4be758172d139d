"""The sampler against transformers' warpers, against itself in other batches, and by its paths."""

from __future__ import annotations

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speculation import reference

from pdv_mp.sampling_params import SamplingParams
from pdv_mp.speculation import sampling
from pdv_mp.speculation.sampling import SamplingRows, SamplingTable, processed_logprobs, sample

NEAR = 2e-5
"""Difference of scores that float32 may turn around."""

parameters = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-4, 0.3, 0.7, 1.0, 1.3, 10.0]),
    top_k=st.sampled_from([-1, 0, 1, 2, 3, 7, 40, 10_000, 2**40]),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.7, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-5, 0.05, 0.5, 0.99]),
)


@st.composite
def logit_rows(draw: st.DrawFn, num_rows: int | None = None) -> torch.Tensor:
    """Rows of logits: smooth ones, coarse ones with many ties, and some tokens forbidden."""
    rows = num_rows or draw(st.integers(1, 5))
    vocab_size = draw(st.sampled_from([1, 2, 3, 5, 17, 64, 65, 150]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(rows, vocab_size, generator=generator) * draw(st.sampled_from([0.5, 3, 8]))
    kind = draw(st.sampled_from(["smooth", "bfloat16", "integers", "equal"]))
    if kind == "bfloat16":
        logits = logits.bfloat16().float()
    elif kind == "integers":
        logits = logits.round()
    elif kind == "equal":
        logits = torch.full_like(logits, draw(st.sampled_from([-3.5, 0.0, 20.0])))
    if draw(st.booleans()):
        forbidden = torch.rand(rows, vocab_size, generator=generator) < 0.3
        forbidden[:, draw(st.integers(0, vocab_size - 1))] = False
        logits = logits.masked_fill(forbidden, -torch.inf)
    return logits


def rows_of(params: list[SamplingParams], seeds: list[int], positions: list[int]) -> SamplingRows:
    table = SamplingTable(len(params))
    for slot, (one, seed) in enumerate(zip(params, seeds, strict=True)):
        table.set(slot, one, seed)
    return table.rows(np.arange(len(params)), np.array(positions))


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, list[SamplingParams], list[int], list[int]]:
    logits = draw(logit_rows())
    size = len(logits)
    params = draw(st.lists(parameters, min_size=size, max_size=size))
    seeds = draw(st.lists(st.integers(-(2**53), 2**53), min_size=size, max_size=size))
    positions = draw(st.lists(st.integers(0, 5000), min_size=size, max_size=size))
    return logits, params, seeds, positions


def sample_by_full_sort(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    with (
        mock.patch.object(sampling, "_sample_nucleus", sampling._sample_ranked),
        mock.patch.object(sampling, "_MIN_CANDIDATES", 10**6),
    ):
        return sample(logits, rows)


def widened(params: SamplingParams, by: float) -> SamplingParams:
    """Truncations moved by rounding's worth: outwards for a positive ``by``."""
    top_p = params.top_p
    if top_p < 1:
        top_p = min(max(top_p + by, 1e-12), 1.0)
    return dataclasses.replace(params, top_p=top_p, min_p=params.min_p * (1 - by))


@settings(max_examples=400, deadline=None)
@given(batches())
def test_tokens_are_those_of_the_warpers_and_the_noise(
    batch: tuple[torch.Tensor, list[SamplingParams], list[int], list[int]],
) -> None:
    """Every token is in transformers' support and has its best score, near-ties apart."""
    logits, params, seeds, positions = batch
    tokens = sample(logits, rows_of(params, seeds, positions))
    assert tokens.dtype == torch.int64
    for row, token in enumerate(tokens.tolist()):
        if params[row].temperature == 0:
            assert token == int((logits[row] == logits[row].max()).nonzero()[0])
            continue
        found = []
        for by in (0.0, 2e-6, -2e-6):
            scores = reference.scores(
                logits[row], widened(params[row], by), seeds[row], positions[row]
            )
            # Renormalising shifts all scores alike, so the best is what may be compared.
            found.append(bool(scores[token] > -torch.inf and scores[token] >= scores.max() - NEAR))
        assert any(found)


@settings(max_examples=400, deadline=None)
@given(logit_rows(num_rows=1), parameters.filter(lambda params: params.temperature > 0))
def test_support_is_that_of_the_warpers(logits: torch.Tensor, params: SamplingParams) -> None:
    """Between transformers' supports for truncations a rounding's worth tighter and wider."""
    ours = processed_logprobs(logits, rows_of([params], [0], [0]))[0]
    tight = reference.processed_logprobs(logits[0].double(), widened(params, -2e-6)).isfinite()
    wide = reference.processed_logprobs(logits[0].double(), widened(params, 2e-6)).isfinite()
    kept = ours.isfinite()
    assert not (tight & ~kept).any()
    assert not (kept & ~wide).any()
    if torch.equal(tight, wide):
        theirs = reference.processed_logprobs(logits[0].double(), params)[kept]
        torch.testing.assert_close(ours[kept].double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [2, 4, 8, 16, 64])
@pytest.mark.parametrize("top_k", [0, 1, 3, 100])
@pytest.mark.parametrize("top_p", [1e-9, 0.25, 0.5, 0.625, 0.75, 1.0])
def test_equal_tokens_are_cut_as_transformers_cuts_them(
    vocab_size: int, top_k: int, top_p: float
) -> None:
    """Sums of equal powers of two are exact, so that nothing is excused as rounding."""
    params = SamplingParams(temperature=0.5, top_k=top_k, top_p=top_p)
    for logits in (torch.zeros(1, vocab_size), -torch.arange(vocab_size).float()[None] // 2 * 40):
        theirs = reference.processed_logprobs(logits[0], params).isfinite()
        ours = processed_logprobs(logits, rows_of([params], [0], [0]))[0].isfinite()
        assert torch.equal(ours, theirs)


@settings(max_examples=300, deadline=None)
@given(batches(), st.sampled_from([1, 2, 5, 16, 64]), st.sampled_from([2, 8]))
def test_few_candidates_give_what_a_full_sort_gives(
    batch: tuple[torch.Tensor, list[SamplingParams], list[int], list[int]], few: int, growth: int
) -> None:
    logits, params, seeds, positions = batch
    rows = rows_of(params, seeds, positions)
    full = sample_by_full_sort(logits, rows)
    with (
        mock.patch.object(sampling, "_MIN_CANDIDATES", few),
        mock.patch.object(sampling, "_MAX_CANDIDATES", 2),
        mock.patch.object(sampling, "_GROWTH", growth),
    ):
        assert torch.equal(sample(logits, rows), full)


@st.composite
def nucleus_batches(draw: st.DrawFn) -> tuple[torch.Tensor, SamplingRows]:
    """Rows with top_p, flat or not, some with a top_p that is within rounding of a rank's mass."""
    size = draw(st.integers(1, 6))
    vocab_size = draw(st.integers(3, 100) | st.integers(3, 5000))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.0, 0.01, 0.5, 2.0, 8.0]))
    logits = torch.randn(size, vocab_size, generator=generator) * spread
    coarse = draw(st.sampled_from([None, 0.25, 2.0]))
    if coarse:
        logits = (logits / coarse).round() * coarse
    if draw(st.booleans()):
        forbidden = torch.rand(size, vocab_size, generator=generator) < 0.3
        forbidden[:, draw(st.integers(0, vocab_size - 1))] = False
        logits = logits.masked_fill(forbidden, -torch.inf)
    seed, params = draw(st.integers(0, 2**40)), []
    for position, row in enumerate(logits):
        one = SamplingParams(
            temperature=draw(st.sampled_from([1.0, 1.0, 0.7])),
            top_p=draw(st.sampled_from([1e-9, 1e-5, 0.1, 0.5, 0.9, 0.999, 1 - 1e-7])),
            min_p=draw(st.sampled_from([0.0, 0.0, 1e-3, 0.5])),
        )
        near = draw(st.sampled_from([None, "winner", "winner", "any rank"]))
        if near:
            free = rows_of([dataclasses.replace(one, top_p=1.0)], [seed], [position])
            if near == "winner":
                token = int(sample(row[None], free))
            else:
                token = draw(st.integers(0, vocab_size - 1))
            best = sampling._rank(row[None], vocab_size, free)
            above = int((best.ids[0] == token).nonzero())
            distance = draw(st.sampled_from([0, 1e-15, 1e-8, 1e-7, 1e-6, 2e-5, 2**-15, 5e-5]))
            top_p = float(best.z[0].double().softmax(-1)[:above].sum())
            top_p += distance * draw(st.sampled_from([-1, 1]))
            one = dataclasses.replace(one, top_p=min(max(top_p, 1e-12), 1.0))
        params.append(one)
    return logits, rows_of(params, [seed] * size, list(range(size)))


@settings(max_examples=300, deadline=None)
@given(nucleus_batches(), st.sampled_from([1, 2, 4]))
def test_rounds_give_what_a_full_sort_gives(
    batch: tuple[torch.Tensor, SamplingRows], rounds: int
) -> None:
    logits, rows = batch
    full = sample_by_full_sort(logits, rows)
    with mock.patch.dict(sampling._ROUNDS_PER_LOOK, cpu=rounds):
        assert torch.equal(sample(logits, rows), full)
    alone = [sample(logits[i : i + 1], rows.select(np.array([i]))) for i in range(len(logits))]
    assert torch.equal(torch.cat(alone), full)


@pytest.mark.parametrize("slack", [2.0**-15, 0.05, 2.0])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_any_share_of_rows_may_be_left_to_the_ranking(spread: float, slack: float) -> None:
    logits = torch.randn(64, 500, generator=torch.Generator().manual_seed(4)) * spread
    params = [SamplingParams(temperature=1.0, top_p=p) for p in (1e-3, 0.05, 0.5, 0.93)] * 16
    rows = rows_of(params, list(range(64)), list(range(64)))
    full = sample_by_full_sort(logits, rows)
    with (
        mock.patch.object(sampling, "_MASS_SLACK", slack),
        mock.patch.object(sampling, "_rank", wraps=sampling._rank) as rank,
    ):
        assert torch.equal(sample(logits, rows), full)
    assert rank.called == (slack > 2.0**-15)


@pytest.mark.parametrize("vocab_size", [3, 100, 5000, 150_000])
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 12.0])
def test_the_mass_above_is_known_far_better_than_its_slack(vocab_size: int, spread: float) -> None:
    """Against the ranking's own sums, at ranks all over the vocabulary."""
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(1, vocab_size, generator=generator) * spread
    logits[:, ::2] = logits[:, ::2].bfloat16().float()
    rows = rows_of([SamplingParams(temperature=1.0, top_p=0.9)], [0], [0])
    probs = sampling._scaled(logits, rows).softmax(dim=-1)
    best = sampling._rank(logits, vocab_size, rows)
    weights = best.z.double().exp()
    exact = (weights.cumsum(-1) - weights) / sampling._full_mass(logits, rows)
    for rank in {0, 1, 2, *torch.linspace(0, vocab_size - 1, 40).long().tolist()}:
        chosen = torch.zeros_like(logits)
        chosen[0, best.ids[0, rank]] = 1.0
        winner, above, mass = sampling._winner(logits, probs, chosen)
        assert winner.item() == best.ids[0, rank]
        assert above.sum() == rank
        assert abs(mass.item() - exact[0, rank].item()) < sampling._MASS_SLACK / 8
        assert (mass.item() == 0) == (rank == 0)


@pytest.mark.parametrize("top_p", [1e-6, 0.05, 0.5, 0.9, 0.99])
def test_rows_with_top_p_alone_are_not_ranked(top_p: float) -> None:
    logits = torch.randn(40, 2000, generator=torch.Generator().manual_seed(9))
    rows = rows_of([SamplingParams(temperature=1.0, top_p=top_p)] * 40, list(range(40)), [1] * 40)
    with mock.patch.object(sampling, "_rank", side_effect=AssertionError("not needed")):
        sample(logits, rows)


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("coarse", [False, True], ids=["smooth", "coarse"])
def test_candidates_at_full_size(spread: float, coarse: bool) -> None:
    """The constants as they are, a vocabulary of thousands, nuclei from one token to nearly all."""
    logits = torch.randn(64, 4096, generator=torch.Generator().manual_seed(3)) * spread
    logits = logits.bfloat16().float() if coarse else logits
    params = [
        SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)
        for top_k in (0, 5, 63, 64, 1500)
        for top_p in (0.3, 0.95, 1.0)
        for min_p in (0.0, 0.1)
    ]
    params = (params * 3)[:64]
    rows = rows_of(params, list(range(64)), list(range(64)))
    full = sample_by_full_sort(logits, rows)
    with mock.patch.object(sampling, "_rank", wraps=sampling._rank) as rank:
        assert torch.equal(sample(logits, rows), full)
    assert rank.call_args_list[0].args[1] == 65
    assert rank.call_count > 1 or spread == 4.0


@settings(max_examples=200, deadline=None)
@given(batches())
def test_a_row_does_not_depend_on_its_batch(
    batch: tuple[torch.Tensor, list[SamplingParams], list[int], list[int]],
) -> None:
    logits, params, seeds, positions = batch
    rows = rows_of(params, seeds, positions)
    together = sample(logits, rows)
    laws = processed_logprobs(logits, rows)
    for row in range(len(logits)):
        alone = rows.select(np.array([row]))
        assert torch.equal(sample(logits[row : row + 1], alone), together[row : row + 1])
        assert torch.equal(processed_logprobs(logits[row : row + 1], alone)[0], laws[row])


def test_large_batches_and_threads_do_not_change_a_row() -> None:
    logits = torch.randn(96, 4096, generator=torch.Generator().manual_seed(5))
    params = [
        SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k)
        for temperature in (0.0, 0.7, 1.0, 1.3)
        for top_p in (0.9, 1.0)
        for top_k in (0, 20)
    ] * 6
    rows = rows_of(params, list(range(96)), [17] * 96)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = sample(logits, rows)
    finally:
        torch.set_num_threads(before)
    alone = [sample(logits[i : i + 1], rows.select(np.array([i]))) for i in range(96)]
    assert torch.equal(torch.cat(alone), together)


def test_logits_are_left_as_they_are() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(6))
    copy = logits.clone()
    for params in (
        SamplingParams(),
        SamplingParams(temperature=1.0, min_p=0.1),
        SamplingParams(temperature=1.0, top_k=4, top_p=0.5),
    ):
        sample(logits, rows_of([params] * 4, [1] * 4, [0] * 4))
        processed_logprobs(logits, rows_of([params] * 4, [1] * 4, [0] * 4))
    assert torch.equal(logits, copy)


def test_all_greedy_takes_only_an_argmax() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    rows = rows_of([SamplingParams(top_k=2, top_p=0.1)] * 2, [1, 2], [0, 0])
    assert rows.all_greedy
    with mock.patch.object(sampling, "_scaled", side_effect=AssertionError("not needed")):
        assert sample(logits, rows).tolist() == [1, 0]
    assert processed_logprobs(logits, rows).exp().tolist() == [[0, 1, 0], [1, 0, 0]]


def test_rows_that_need_no_ranking_are_not_ranked() -> None:
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(7))
    params = [
        SamplingParams(temperature=1.0, top_k=k, min_p=m) for k, m in ((0, 0), (30, 0.1), (99, 0))
    ]
    with mock.patch.object(sampling, "_rank", side_effect=AssertionError("not needed")):
        sample(logits, rows_of(params, [1, 2, 3], [4, 5, 6]))


def test_an_empty_batch() -> None:
    rows = SamplingTable(1).rows(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert sample(torch.zeros(0, 7), rows).shape == (0,)


def test_slots_are_rewritten_and_repeat() -> None:
    table = SamplingTable(2)
    table.set(0, SamplingParams(temperature=2.0, top_k=5, top_p=0.5, min_p=0.1), 7)
    table.set(1, SamplingParams(temperature=1.0), 8)
    table.set(0, SamplingParams(temperature=1.0), 9)
    rows = table.rows(np.array([0, 0, 1]), np.array([3, 4, 3]))
    assert rows.temperature.tolist() == [1, 1, 1]
    assert rows.top_k.tolist() == [0, 0, 0]
    assert (rows.top_p.tolist(), rows.min_p.tolist()) == ([1, 1, 1], [0, 0, 0])
    assert (rows.seeds.tolist(), rows.positions.tolist()) == ([9, 9, 8], [3, 4, 3])


def test_a_temperature_below_float32_is_greedy() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    for temperature in (1e-300, 1e-40):
        rows = rows_of([SamplingParams(temperature=temperature)], [1], [0])
        assert sample(logits, rows).tolist() == [1]
