"""The noise: its bits, against an independent implementation; its law; its independence."""

from __future__ import annotations

import itertools
import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from speculation import reference

from pdv_mp.speculation import host_noise, noise
from pdv_mp.speculation.noise import (
    Purpose,
    add_gumbel_,
    gumbel,
    gumbel_at,
    row_keys,
    uniforms,
)

INT64 = st.integers(-(2**63), 2**63 - 1)

GOLDEN = [
    [-1095643215, -1094957691, 1054244886, 1080988636, 1053235769],
    [1046107717, 1077497509, 1069306378, -1139150773, -1098313964],
    [1059248517, -1089014881, 1087549175, 1058631092, 1065667310],
    [1063934380, 1073185627, 1061028637, 1056830374, -1079262327],
]


GOLDEN_DRAFT_KEYS = [
    [1293516399, -1492722385],
    [1587764396, -754970102],
    [-1417228165, 1424014833],
    [1559842535, -913788453],
]
GOLDEN_UNIFORMS = [0.7012121095215252, 0.6222266869880747, 0.4333803072663719, 0.8610088481649968]


def keys_of(seeds: list[int], positions: list[int]) -> torch.Tensor:
    return torch.from_numpy(row_keys(np.array(seeds, np.int64), np.array(positions, np.int64)))


def noise_of(seeds: list[int], positions: list[int], vocab_size: int) -> np.ndarray:
    return gumbel(keys_of(seeds, positions), vocab_size).numpy()


@settings(max_examples=200, deadline=None)
@given(INT64, st.integers(0, 2**40), st.integers(0, 2**18))
def test_agrees_with_plain_python(seed: int, position: int, token: int) -> None:
    tokens = torch.tensor([[token]])
    value = gumbel_at(keys_of([seed], [position]), tokens).item()
    assert value == pytest.approx(reference.gumbel(seed, position, token), abs=1e-6)


def test_both_ends_of_the_range() -> None:
    """The smallest and largest of many uniforms, where a careless logarithm loses its digits."""
    noise = noise_of([11] * 512, list(range(512)), 4096)
    for index in (*noise.ravel().argsort()[:20], *noise.ravel().argsort()[-20:]):
        position, token = divmod(int(index), 4096)
        exact = reference.gumbel(11, position, token)
        assert noise[position, token] == pytest.approx(exact, abs=1e-6)
    assert noise.max() > 12
    assert noise.min() >= -2.812


def test_golden_bits() -> None:
    """These bits may never change: a seed must give the same text in every version."""
    noise = noise_of([0, 1, -1, 2**53 - 1], [0, 1, 2047, 10**6], 5)
    assert noise.view(np.int32).tolist() == GOLDEN


def test_golden_bits_of_the_other_purposes() -> None:
    seeds, positions = np.array([0, 1, -1, 2**53 - 1]), np.array([0, 1, 2047, 10**6])
    assert row_keys(seeds, positions, Purpose.DRAFT).tolist() == GOLDEN_DRAFT_KEYS
    assert uniforms(seeds, positions, Purpose.ACCEPTANCE).tolist() == GOLDEN_UNIFORMS
    assert np.array_equal(row_keys(seeds, positions, Purpose.TOKEN), row_keys(seeds, positions))


@settings(max_examples=200, deadline=None)
@given(INT64, st.integers(0, 2**40), st.sampled_from(list(Purpose)))
def test_keys_of_every_purpose_agree_with_plain_python(
    seed: int, position: int, purpose: Purpose
) -> None:
    low, high = reference.row_keys(seed, position, purpose)
    seeds, positions = np.array([seed], np.int64), np.array([position])
    assert row_keys(seeds, positions, purpose).view(np.uint32).tolist() == [[low, high]]
    (u,) = uniforms(seeds, positions, purpose)
    assert u == (2 * ((high << 32 | low) >> 12) + 1) / 2**53
    assert 0 < u < 1


def test_one_element_at_a_time_has_the_same_bits() -> None:
    """Neither the width, nor the batch, nor the place in an array changes a bit."""
    seeds, positions = [3, 3, -8, 2**40, 3], [0, 1, 1, 5, 700]
    for vocab_size in (1, 3, 17, 4097, 70_000):
        whole = gumbel(keys_of(seeds, positions), vocab_size)
        single = torch.cat(
            [gumbel(keys_of([s], [p]), vocab_size) for s, p in zip(seeds, positions, strict=True)]
        )
        assert torch.equal(whole, single)
        ids = torch.randint(0, vocab_size, (5, 7), generator=torch.Generator().manual_seed(1))
        picked = gumbel_at(keys_of(seeds, positions), ids)
        assert torch.equal(picked, whole.gather(1, ids))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(INT64, st.integers(0, 2**40)), min_size=1, max_size=4),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40),
)
def test_small_blocks_have_the_bits_of_large_ones(
    rows: list[tuple[int, int]], ids: list[int]
) -> None:
    """Small blocks on a CPU are computed by numpy, large ones by torch."""
    keys = keys_of([seed for seed, _ in rows], [position for _, position in rows])
    tokens = torch.tensor([ids] * len(rows))
    by_numpy = gumbel_at(keys, tokens)
    with mock.patch.object(noise, "_SMALL", 0):
        assert torch.equal(gumbel_at(keys, tokens), by_numpy)


def test_millions_of_bits_of_small_blocks() -> None:
    """Every exponent of both logarithms occurs, and the largest and smallest fractions."""
    keys = keys_of([21] * 256, list(range(256)))
    with mock.patch.object(noise, "_SMALL", 2**30):
        by_numpy = gumbel(keys, 2**14)
        added = add_gumbel_(torch.ones(256, 2**14), keys)
    with mock.patch.object(noise, "_SMALL", 0):
        by_torch = gumbel(keys, 2**14)
    assert torch.equal(by_numpy, by_torch)
    assert torch.equal(added, 1.0 + by_torch)


def test_the_extreme_bits_of_small_blocks() -> None:
    """Hashes chosen so that what is left of them is any power of two, one less and one more."""
    wanted = sorted({(2**e + d) % 2**31 for e in range(32) for d in (-2, -1, 0, 1, 2)})
    bits = torch.tensor(wanted, dtype=torch.int32)[None]
    spare = torch.empty((3, *bits.shape), dtype=torch.int32)
    out = spare[2].view(torch.float32)
    noise._bits_to_gumbel(bits.clone(), spare[0], spare[1].view(torch.float32), out)
    by_numpy = host_noise.noise_of_bits(bits.numpy().view(np.uint32).copy())
    assert np.array_equal(by_numpy, out.numpy())


def test_added_in_place_it_is_the_same_noise() -> None:
    keys = keys_of([5] * 40, list(range(40)))
    scores = torch.randn(40, 5000, generator=torch.Generator().manual_seed(2))
    expected = scores + gumbel(keys, 5000)
    assert torch.equal(add_gumbel_(scores, keys), expected)
    assert torch.equal(scores, expected)


def test_empty_batches() -> None:
    assert gumbel(keys_of([], []), 5).shape == (0, 5)
    assert gumbel_at(keys_of([1], [1]), torch.zeros((1, 0), dtype=torch.int64)).shape == (1, 0)


def test_threads_do_not_change_bits() -> None:
    keys = keys_of([5] * 64, list(range(64)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gumbel(keys, 5000)
        torch.set_num_threads(2)
        two = gumbel(keys, 5000)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_bits_on_a_gpu() -> None:
    keys = keys_of([5] * 64, list(range(64)))
    assert torch.equal(gumbel(keys, 5000), gumbel(keys.cuda(), 5000).cpu())


def as_uniform(noise: np.ndarray) -> np.ndarray:
    """Back to uniform on (0, 1)."""
    return np.exp(-np.exp(-noise.astype(np.float64)))


@pytest.mark.parametrize(
    ("seeds", "positions"),
    [
        ([7] * 256, range(256)),
        (range(256), [3] * 256),
        ([2**32 * i for i in range(256)], [0] * 256),
        ([-i for i in range(256)], range(256)),
    ],
    ids=["positions", "seeds", "high-seeds", "diagonal"],
)
def test_uniform_over_any_slice(seeds: list[int], positions: list[int]) -> None:
    """All values, the values of each row, and those of each token, are uniform."""
    u = as_uniform(noise_of(list(seeds), list(positions), 1024))
    counts = np.histogram(u, 4096, (0, 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-3
    for axis in (0, 1):
        levels = [stats.kstest(line, "uniform").pvalue for line in np.moveaxis(u, axis, 0)]
        assert stats.kstest(levels, "uniform").pvalue > 1e-3


def test_the_winning_tail_has_its_share() -> None:
    """2^24 values: above -log(-log1p(-2^-k)) lie 2^(24-k) of them, up to the noise of counting."""
    noise = noise_of([99] * 1024, list(range(1024)), 2**14)
    for k in range(8, 21):
        expected = 2 ** (24 - k)
        count = int((noise > -math.log(-math.log1p(-(2.0**-k)))).sum())
        assert abs(count - expected) < 4 * math.sqrt(expected)


@pytest.mark.parametrize("shift", [1, 2, 16, 64, 128])
@pytest.mark.parametrize("what", ["seed", "position", "token"])
def test_neighbours_are_independent(what: str, shift: int) -> None:
    """Pairs (g, neighbour's g) fill a 16 by 16 table evenly; so do their low bits."""
    rows, columns = 512, 1024
    base = as_uniform(noise_of([5] * rows, list(range(rows)), columns))
    if what == "seed":
        other = as_uniform(noise_of([5 + shift] * rows, list(range(rows)), columns))
    elif what == "position":
        other = as_uniform(noise_of([5] * rows, [p + shift for p in range(rows)], columns))
    else:
        wide = as_uniform(noise_of([5] * rows, list(range(rows)), columns + shift))
        other = wide[:, shift:]
    for scale in (1, 2**8):
        cells = [np.floor(u * scale % 1 * 16).astype(int).ravel() for u in (base, other)]
        table = np.bincount(cells[0] * 16 + cells[1], minlength=256)
        assert stats.chisquare(table).pvalue > 1e-4


@pytest.mark.parametrize("purpose", Purpose)
def test_uniform_numbers_are_uniform(purpose: Purpose) -> None:
    seeds, positions = np.meshgrid(np.arange(-300, 300), np.arange(300), indexing="ij")
    u = uniforms(seeds.ravel(), positions.ravel(), purpose).reshape(seeds.shape)
    assert stats.chisquare(np.histogram(u, 1024, (0, 1))[0]).pvalue > 1e-3
    for axis in (0, 1):
        levels = [stats.kstest(line, "uniform").pvalue for line in np.moveaxis(u, axis, 0)]
        assert stats.kstest(levels, "uniform").pvalue > 1e-3


def test_purposes_are_independent() -> None:
    """A position's numbers for all purposes: any two fill a table evenly, so do their low bits."""
    seeds, positions = np.repeat(np.arange(400), 500), np.tile(np.arange(500), 400)
    numbers = [uniforms(seeds, positions, purpose) for purpose in Purpose]
    for purpose in (Purpose.TOKEN, Purpose.DRAFT):
        keys = torch.from_numpy(row_keys(seeds, positions, purpose))
        numbers += [*as_uniform(gumbel(keys, 2).numpy()).T]
    for one, other in itertools.combinations(range(len(numbers)), 2):
        for scale in (1, 2**8):
            cells = [np.floor(numbers[i] * scale % 1 * 16).astype(int) for i in (one, other)]
            table = np.bincount(cells[0] * 16 + cells[1], minlength=256)
            assert stats.chisquare(table).pvalue > 1e-4


def test_rows_do_not_repeat() -> None:
    """No two of many (seed, position) pairs share their keys, also where seed + position agree."""
    seeds, positions = np.meshgrid(np.arange(-500, 500), np.arange(1000), indexing="ij")
    keys = row_keys(seeds.ravel(), positions.ravel())
    assert len(np.unique(keys.view(np.int64))) == keys.shape[0]
