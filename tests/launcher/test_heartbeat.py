"""Who has given no sign of life, with a clock and processor times of the test's own."""

from __future__ import annotations

import math
import os

import pytest

from launcher.heartbeat import PATIENCE, Heartbeat, cpu_seconds


class Played:
    """A heartbeat of 10 s whose looks come on time, over processes that use what a test says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.used: dict[int, float] = {}
        self.heartbeat = Heartbeat(10.0, lambda pid: self.used.get(pid, 0.0))

    def look(self, *pids: int, answers: tuple[int, ...] = ()) -> dict[int, float]:
        """One look; these answer at once. The next one is 2.5 s later."""
        hung = self.heartbeat.look(pids, self.now)
        assert self.heartbeat.deadline == self.now + 2.5
        for pid in answers:
            self.heartbeat.answered(pid, self.now)
        self.now += 2.5
        return hung


@pytest.fixture
def played() -> Played:
    return Played()


def test_who_answers_is_never_named(played: Played) -> None:
    assert not any(played.look(1, answers=(1,)) for _ in range(20))


def test_who_falls_silent_is_named_within_the_timeout(played: Played) -> None:
    for _ in range(3):
        assert played.look(1, 2, answers=(1, 2)) == {}
    # It stops now, after the look at 5 s and before that at 7.5 s.
    looks = [played.look(1, 2, answers=(1,)) for _ in range(3)]
    assert looks == [{}, {}, {2: 10.0}]
    assert played.now - 2.5 == 12.5
    assert played.look(1, answers=(1,)) == {}


def test_who_computed_until_it_was_stopped_has_the_time_from_then(played: Played) -> None:
    played.look(1, answers=(1,))
    for _ in range(8):
        played.used[1] = played.used.get(1, 0.0) + 2.0
        assert played.look(1) == {}
    # Stopped right after the look at 20 s: named at 27.5 s.
    assert [played.look(1) for _ in range(3)] == [{}, {}, {1: 10.0}]


def test_an_endless_loop_ends(played: Played) -> None:
    hung: dict[int, float] = {}
    while not hung:
        hung = played.look(1)
        played.used[1] = played.used.get(1, 0.0) + 2.5
    assert hung == {1: PATIENCE * 10.0}
    assert played.now - 2.5 == PATIENCE * 10.0


def test_idle_threads_are_no_computing(played: Played) -> None:
    played.look(1)
    hung: dict[int, float] = {}
    while not hung:
        played.used[1] = played.used.get(1, 0.0) + 0.02
        hung = played.look(1)
    assert hung == {1: 10.0}


def test_one_that_is_new_has_its_whole_time(played: Played) -> None:
    for _ in range(4):
        played.look(1, answers=(1,))
    assert [played.look(1, 2, answers=(1,)) for _ in range(4)] == [{}, {}, {}, {2: 10.0}]


def test_nobody_is_blamed_for_our_own_absence(played: Played) -> None:
    played.look(1)
    played.now += 100.0
    assert [played.look(1) for _ in range(4)] == [{}, {}, {}, {1: 10.0}]


def test_answers_of_strangers_are_nothing(played: Played) -> None:
    played.heartbeat.answered(7, 5.0)
    assert played.look(1) == {}


def test_without_a_timeout_nobody_is_looked_at() -> None:
    assert Heartbeat(0.0).deadline == math.inf


def test_processor_time_of_a_process() -> None:
    before = cpu_seconds(os.getpid())
    assert before > 0
    while cpu_seconds(os.getpid()) == before:
        pass
    assert cpu_seconds(2**22 + 1) == 0.0
