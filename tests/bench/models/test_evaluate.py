from __future__ import annotations

import pytest

from bench.models.evaluate import (
    BEGIN_MARKER,
    END_MARKER,
    Acceptance,
    replace_between_markers,
    simulate_acceptance,
)


def test_full_agreement_accepts_everything() -> None:
    # 1 token from the prefill, then cycles of 4 drafted tokens and the verifier's own.
    assert simulate_acceptance([[True] * 11], 4) == Acceptance(4, 8, 8, 2, 10)


def test_no_agreement_emits_one_token_per_cycle() -> None:
    assert simulate_acceptance([[False] * 4], 2) == Acceptance(2, 3, 0, 3, 3)


def test_tokens_behind_a_mismatch_are_drafted_and_not_accepted() -> None:
    row = [True, True, False, True, True, True]
    # One hit, then the mismatch; from position 3 two remain to be drafted.
    assert simulate_acceptance([row], 3) == Acceptance(3, 5, 3, 2, 5)


def test_markers() -> None:
    text = f"a\n{BEGIN_MARKER}\nold\n{END_MARKER}\nb\n"
    replaced = replace_between_markers(text, "new")
    assert replaced == f"a\n{BEGIN_MARKER}\n\nnew\n\n{END_MARKER}\nb\n"
    assert replace_between_markers(replaced, "new") == replaced
    with pytest.raises(ValueError, match="lacks the lines"):
        replace_between_markers("no markers", "new")
