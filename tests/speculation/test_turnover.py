"""Whether those that end are followed by others."""

from __future__ import annotations

import numpy as np
import pytest

from pdv_mp.speculation.draft_length.turnover import PATIENCE, Turnover

SLOTS = 8
TOKENS = 36
"""That each gets between two looks at the batch, at most."""


def slots(*which: int) -> np.ndarray:
    return np.array(which, np.int64)


def see(turnover: Turnover, batch: np.ndarray, cycles: int, remaining: int = 1) -> None:
    """A batch whose requests all may get as many tokens more."""
    turnover.seen(batch, np.full(len(batch), remaining), cycles, TOKENS)


def test_before_anything_is_known_all_are_followed() -> None:
    assert Turnover(SLOTS).followed == 1


def test_batches_that_nobody_joins_end_raggedly() -> None:
    turnover, shares = Turnover(SLOTS), []
    for _ in range(6):
        for batch in (slots(0, 1, 2, 3), slots(1, 2, 3), slots(1, 3), slots(3)):
            see(turnover, batch, 4)
        shares.append(turnover.followed)
        for slot in range(4):
            turnover.replaced(slot)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.5


def test_a_server_in_which_each_is_followed_at_once() -> None:
    turnover = Turnover(SLOTS)
    for cycle in range(100):
        turnover.replaced(cycle % SLOTS)
        see(turnover, np.arange(SLOTS), 4)
    assert turnover.followed == 1


@pytest.mark.parametrize(("later", "followed"), [(PATIENCE, True), (PATIENCE + 1, False)])
def test_those_who_follow_late_do_not_count(later: int, followed: bool) -> None:
    turnover = Turnover(SLOTS)
    see(turnover, slots(0, 1, 2), 1)
    see(turnover, slots(0, 1), 1)
    see(turnover, slots(0, 1), later)
    see(turnover, slots(0, 1, 5), 0)
    assert (turnover.followed == 1) == followed


def test_those_that_end_together_say_nothing() -> None:
    turnover = Turnover(SLOTS)
    for _ in range(10):
        see(turnover, slots(0, 1, 2, 3), 16)
        for slot in range(4):
            turnover.replaced(slot)
    assert turnover.followed == 1


def test_a_change_is_learnt_within_some_dozens() -> None:
    turnover = Turnover(SLOTS)
    for _ in range(100):
        see(turnover, slots(0, 1), 4)
        see(turnover, slots(1), 4)
        turnover.replaced(0)
        turnover.replaced(1)
    assert turnover.followed < 0.1
    for cycle in range(100):
        turnover.replaced(cycle % 2)
        see(turnover, slots(0, 1), 4)
    assert turnover.followed > 0.9


def test_requests_that_end_at_their_limits() -> None:
    turnover = Turnover(SLOTS)
    for _ in range(40):
        see(turnover, slots(0, 1, 2), 4, remaining=100)
        see(turnover, slots(0, 1, 2), 4, remaining=TOKENS)
        see(turnover, slots(1), 4, remaining=TOKENS)
        turnover.replaced(0)
        turnover.replaced(2)
    assert turnover.at_limit == 1


def test_requests_that_end_by_themselves() -> None:
    turnover, shares = Turnover(SLOTS), []
    for _ in range(40):
        see(turnover, slots(0, 1, 2), 4, remaining=TOKENS + 1)
        see(turnover, slots(1), 4, remaining=TOKENS + 1)
        turnover.replaced(0)
        turnover.replaced(2)
        shares.append(turnover.at_limit)
    assert shares == sorted(shares, reverse=True)
    assert shares[3] <= 0.5
    assert shares[-1] < 0.05


def test_a_slot_with_a_new_owner_says_nothing_of_the_last_one() -> None:
    turnover = Turnover(SLOTS)
    see(turnover, slots(0, 1), 4, remaining=1000)
    turnover.replaced(0)
    see(turnover, slots(0, 1), 4, remaining=1000)
    assert turnover.at_limit == 1


def test_groups_that_take_turns_say_nothing() -> None:
    turnover = Turnover(SLOTS)
    for _ in range(40):
        see(turnover, slots(0, 1), 4, remaining=1000)
        see(turnover, slots(2, 3), 4, remaining=1000)
    assert (turnover.followed, turnover.at_limit) == (1, 1)
