"""Parameters are checked by name when they are made."""

from __future__ import annotations

import math

import pytest

from pdv_mp.sampling_params import ParameterError, SamplingParams


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"temperature": -0.1},
        {"temperature": 10.1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"top_k": -2},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": 1.0},
        {"min_p": -0.1},
        {"seed": 2**53},
        {"seed": 1.0},
        {"stop": "text"},
        {"stop": ("",)},
        {"stop": ("x" * 257,)},
        {"stop": ("x",) * 17},
        {"stop": (1,)},
        {"stop_token_ids": (-1,)},
        {"stop_token_ids": (2**31,)},
        {"stop_token_ids": tuple(range(17))},
        {"ignore_eos": 1},
        {"speculate": None},
    ],
)
def test_a_wrong_value_is_refused_by_name(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(ParameterError, match=name.removesuffix("_token_ids")):
        SamplingParams(**wrong)


def test_lists_are_taken_as_tuples() -> None:
    params = SamplingParams(stop=["a", "b"], stop_token_ids=[1, 2])
    assert params.stop == ("a", "b")
    assert params.stop_token_ids == (1, 2)
    assert params == SamplingParams(stop=("a", "b"), stop_token_ids=(1, 2))


def test_the_ends_of_every_range_are_allowed() -> None:
    SamplingParams(max_tokens=1, temperature=10, top_k=-1, top_p=1, min_p=0, seed=-(2**53) + 1)
    SamplingParams(temperature=0, top_p=1e-9, min_p=0.999, seed=2**53 - 1, stop=("x" * 256,) * 16)
