"""Every decoder with random bytes and with damaged messages of every type."""

from __future__ import annotations

from fuzz.wire_properties import CHECKS, check, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

DECODERS = st.integers(0, len(CHECKS) - 1).map(lambda number: bytes((number,)))
SEEDS = st.sampled_from(seeds())
CUTS = st.integers(0, 255)


@settings(max_examples=300, deadline=None)
@given(decoder=DECODERS, frame=st.binary(max_size=200))
def test_random_bytes(decoder: bytes, frame: bytes) -> None:
    check(decoder + frame)


@settings(max_examples=500, deadline=None)
@given(seed=SEEDS, start=CUTS, length=st.integers(0, 12), new=st.binary(max_size=12))
def test_a_message_with_some_bytes_replaced(
    seed: bytes, start: int, length: int, new: bytes
) -> None:
    start = 1 + start % len(seed)
    check(seed[:start] + new + seed[start + length :])


@settings(max_examples=200, deadline=None)
@given(first=SEEDS, second=SEEDS, cut=CUTS, start=CUTS)
def test_the_beginning_of_one_message_and_the_end_of_another(
    first: bytes, second: bytes, cut: int, start: int
) -> None:
    check(first[: 1 + cut % len(first)] + second[start % len(second) :])
