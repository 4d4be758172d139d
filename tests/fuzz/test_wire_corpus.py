"""Inputs that once broke a decoder, and what the fuzzer starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.wire_properties import CHECKS, check, seeds

CORPUS = sorted(Path(__file__).with_name("corpus").iterdir())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_an_input_that_broke_a_decoder_is_handled(path: Path) -> None:
    check(path.read_bytes())


def test_the_seeds_reach_every_decoder() -> None:
    found = seeds()
    assert {seed[0] for seed in found} == set(range(len(CHECKS)))
    for seed in found:
        check(seed)
