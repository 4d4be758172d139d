"""N-gram drafts against a search that spells it out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdv_mp.config import SpeculationOptions
from pdv_mp.speculation.ngram import NGramIndex, make_index

COUNT = 6


def by_hand(text: list[int], least: int, most: int) -> tuple[list[int], int]:
    """What followed the last occurrence of the longest run, going on as a loop."""
    for size in range(min(most, len(text) - 1), least - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                looped = list(text)
                for _ in range(COUNT):
                    looped.append(looped[end + len(looped) - len(text)])
                return looped[len(text) :], size
    return [], 0


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocabulary=st.integers(1, 6),
    least=st.integers(1, 4),
    more=st.integers(0, 3),
)
def test_agrees_with_a_search(seed: int, vocabulary: int, least: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    index = NGramIndex(3, least, least + more)
    tokens = np.zeros((3, 80), np.int32)
    texts: list[list[int]] = [[], [], []]
    for _ in range(12):
        for slot in range(3):
            if rng.random() < 0.1:
                texts[slot] = []
                index.forget(slot)
            if len(texts[slot]) < 60:
                texts[slot] += rng.integers(0, vocabulary, int(rng.integers(1, 8))).tolist()
            tokens[slot, : len(texts[slot])] = texts[slot]
        slots = np.flatnonzero((rng.random(3) < 0.7) & np.array([len(text) > 0 for text in texts]))
        lengths = np.array([len(texts[slot]) for slot in slots], np.int64)
        drafts = index.propose(tokens, slots, lengths, COUNT)
        assert drafts.ids.shape == (len(slots), COUNT)
        for row, slot in enumerate(slots):
            expected, size = by_hand(texts[slot], least, least + more)
            assert drafts.matched[row] == size
            if size:
                assert drafts.ids[row].tolist() == expected


def test_a_text_grows_by_its_new_tokens_only() -> None:
    index = NGramIndex(1, 1, 4)
    tokens = np.arange(50, dtype=np.int32)[None]
    for length in (10, 11, 14):
        index.propose(tokens, np.array([0]), np.array([length]), COUNT)
        entries = len(index._starts[0])
        assert entries == sum(length - size for size in range(1, 5))


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ('{"method": "ngram"}', (1, 4)),
        ('{"method": "ngram", "prompt_lookup_max": 3}', (1, 3)),
        ('{"method": "ngram", "prompt_lookup_min": 2}', (2, 4)),
        ('{"method": "ngram", "prompt_lookup_min": 6}', (6, 6)),
    ],
)
def test_the_index_that_the_options_ask_for(text: str, bounds: tuple[int, int]) -> None:
    index = make_index(SpeculationOptions(speculative_config=text), 2)
    assert index is not None
    assert (index.least, index.most) == bounds
    assert make_index(SpeculationOptions(), 2) is None
    assert make_index(SpeculationOptions(speculative_config='{"model": "x"}'), 2) is None
