"""Who is asked for a sign of life and who has given none, with a clock of the test's own."""

from __future__ import annotations

import math

from launcher.heartbeat import Heartbeat


def look(heartbeat: Heartbeat, pids: list[int], now: float) -> tuple[list[int], bool]:
    return heartbeat.hung(pids, now), heartbeat.ping_is_due(now)


def test_all_are_asked_four_times_within_the_timeout() -> None:
    heartbeat = Heartbeat(10.0)
    asked = [now for now in range(21) if look(heartbeat, [], float(now))[1]]
    assert asked == [0, 3, 6, 9, 12, 15, 18]  # every 2.5 s, as soon as a whole second allows
    assert heartbeat.deadline == 20.5


def test_who_does_not_answer_is_named_when_the_time_is_up() -> None:
    heartbeat = Heartbeat(10.0)
    for now in (0.0, 2.5, 5.0, 7.5):
        assert look(heartbeat, [1, 2], now) == ([], True)
        heartbeat.answered(1, now + 0.1)
    assert heartbeat.deadline == 10.0
    assert look(heartbeat, [1, 2], 9.9) == ([], False)
    assert look(heartbeat, [1, 2], 10.0) == ([2], True)
    assert look(heartbeat, [1], 12.5) == ([], True)


def test_one_that_is_new_has_its_whole_time() -> None:
    heartbeat = Heartbeat(10.0)
    for now in (0.0, 2.5, 5.0, 7.5):
        look(heartbeat, [1], now)
        heartbeat.answered(1, now)
    assert look(heartbeat, [1, 2], 10.0) == ([], True)
    for now in (12.5, 15.0, 17.4):
        assert look(heartbeat, [2], now)[0] == []
    assert look(heartbeat, [2], 20.0)[0] == [2]


def test_nobody_is_blamed_for_our_own_absence() -> None:
    heartbeat = Heartbeat(10.0)
    look(heartbeat, [1], 0.0)
    assert look(heartbeat, [1], 100.0) == ([], True)
    for now in (102.5, 105.0, 107.5):
        assert look(heartbeat, [1], now)[0] == []
    assert look(heartbeat, [1], 110.0)[0] == [1]


def test_answers_of_strangers_are_nothing() -> None:
    heartbeat = Heartbeat(10.0)
    heartbeat.answered(7, 5.0)
    assert look(heartbeat, [1], 6.0) == ([], True)
    assert heartbeat.deadline == 8.5


def test_without_a_timeout_nobody_is_asked() -> None:
    heartbeat = Heartbeat(0.0)
    assert heartbeat.deadline == math.inf
    assert look(heartbeat, [1], 0.0) == ([], False)
    assert look(heartbeat, [1], 1e9) == ([], False)
