"""Counting kept drafts: the statistics, the table, and a short run of both rules."""

from __future__ import annotations

import numpy as np
import pytest

from bench.acceptance import RULES, Task, interval, length, rate, serve, table


def test_definitions() -> None:
    """Drafted, accepted, cycles."""
    counts = np.array([[8, 6, 2], [8, 2, 2]])
    assert rate(counts).tolist() == [0.75, 0.25]
    assert length(counts).tolist() == [4.0, 2.0]
    value, low, high = interval(rate, counts)
    assert (value, low, high) == (0.5, 0.25, 0.75)
    assert interval(rate, counts[:1])[1:] == (0.75, 0.75)


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    """Prompts differ much, the rules by the same amount on each."""
    accepted = np.arange(10, 90, 2)
    one = np.column_stack([np.full(40, 100), accepted, np.full(40, 25)])
    other = one + np.array([0, 5, 0])
    value, low, high = interval(rate, other, less=one)
    assert (value, low, high) == pytest.approx((0.05, 0.05, 0.05))
    assert interval(rate, one)[2] - interval(rate, one)[1] > 0.1
    counts = {("gumbel", 0.5): one, ("rejection", 0.5): other}
    lines = table(counts, [0.5]).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| 0.5 | acceptance rate | 0.490 (")
    assert lines[2].endswith("| +0.050 (+0.050 to +0.050) |")


def test_greedy_counts_are_those_of_either_rule() -> None:
    prompts = [list(range(100, 130)), list(range(500, 520))]
    tasks = [Task(prompt, 0.0, 0) for prompt in (0, 1)]
    found = [serve(rule, prompts, tasks, k=3, tokens=12) for rule in RULES]
    assert np.array_equal(*found)
    for drafted, accepted, cycles in found[0]:
        assert 0 <= accepted <= drafted <= 3 * cycles
        assert 0 < cycles <= 11
