"""Whether those that end are followed by others."""

from __future__ import annotations

import numpy as np
import pytest

from pdv_mp.speculation.draft_length.turnover import PATIENCE, Turnover

SLOTS = 8


def slots(*which: int) -> np.ndarray:
    return np.array(which, np.int64)


def test_before_anything_is_known_all_are_followed() -> None:
    assert Turnover(SLOTS).followed == 1


def test_batches_that_nobody_joins_end_raggedly() -> None:
    turnover, shares = Turnover(SLOTS), []
    for _ in range(6):
        for batch in (slots(0, 1, 2, 3), slots(1, 2, 3), slots(1, 3), slots(3)):
            turnover.seen(batch, 4)
        shares.append(turnover.followed)
        for slot in range(4):
            turnover.replaced(slot)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.5


def test_a_server_in_which_each_is_followed_at_once() -> None:
    turnover = Turnover(SLOTS)
    for cycle in range(100):
        turnover.replaced(cycle % SLOTS)
        turnover.seen(np.arange(SLOTS), 4)
    assert turnover.followed == 1


@pytest.mark.parametrize(("later", "followed"), [(PATIENCE, True), (PATIENCE + 1, False)])
def test_those_who_follow_late_do_not_count(later: int, followed: bool) -> None:
    turnover = Turnover(SLOTS)
    turnover.seen(slots(0, 1, 2), 1)
    turnover.seen(slots(0, 1), 1)
    turnover.seen(slots(0, 1), later)
    turnover.seen(slots(0, 1, 5), 0)
    assert (turnover.followed == 1) == followed


def test_those_that_end_together_say_nothing() -> None:
    turnover = Turnover(SLOTS)
    for _ in range(10):
        turnover.seen(slots(0, 1, 2, 3), 16)
        for slot in range(4):
            turnover.replaced(slot)
    assert turnover.followed == 1


def test_a_change_is_learnt_within_some_dozens() -> None:
    turnover = Turnover(SLOTS)
    for _ in range(100):
        turnover.seen(slots(0, 1), 4)
        turnover.seen(slots(1), 4)
        turnover.replaced(0)
        turnover.replaced(1)
    assert turnover.followed < 0.1
    for cycle in range(100):
        turnover.replaced(cycle % 2)
        turnover.seen(slots(0, 1), 4)
    assert turnover.followed > 0.9
