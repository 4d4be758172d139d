"""The budget of restarts, with a clock of the test's own."""

from __future__ import annotations

from launcher.restarts import RestartBudget, RestartPolicy


def test_delays_double_up_to_the_longest() -> None:
    budget = RestartBudget(RestartPolicy(max_restarts=20))
    delays = [budget.death(float(second)) for second in range(10)]
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert budget.restarts == 10
    assert budget.left == 10


def test_a_budget_is_used_up_and_comes_back_with_time() -> None:
    budget = RestartBudget(RestartPolicy(max_restarts=2, window=100.0))
    assert budget.death(0.0) == 0.0
    assert budget.death(10.0) == 0.1
    assert budget.left == 0
    assert budget.death(99.0) is None
    assert budget.death(100.0) == 0.1  # the first death is forgotten, the second is not
    assert budget.death(105.0) is None
    assert budget.death(1000.0) == 0.0
    assert budget.left == 1


def test_no_restarts_are_none() -> None:
    assert RestartBudget(RestartPolicy(max_restarts=0)).death(1.0) is None


def test_very_many_deaths_keep_the_longest_delay() -> None:
    budget = RestartBudget(RestartPolicy(max_restarts=5000))
    assert [budget.death(1.0) for _ in range(5000)][-1] == 5.0
