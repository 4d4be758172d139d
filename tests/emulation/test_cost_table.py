"""Cost tables: what they say between their points, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from emulation.flat_table import flat_table

from pdv_mp.config import ConfigError
from pdv_mp.emulation.cost_table import CostTable, StepCosts, read_cost_table
from pdv_mp.emulation.device_name import shipped_tables, table_path

GRID = StepCosts((1, 4), (1, 3), (0, 100), (((10, 30), (20, 40)), ((40, 60), (50, 70))))


@pytest.mark.parametrize(
    ("place", "microseconds"),
    [
        ((1, 1, 0), 10),
        ((4, 3, 100), 70),
        ((2.5, 1, 0), 25),
        ((1, 2, 50), 25),
        ((7, 1, 0), 70),
        ((1, 5, 0), 30),
        ((4, 1, 200), 80),
        ((0.5, 0.5, 0), 10),
    ],
)
def test_costs_are_linear_between_points_and_beyond_the_last(
    place: tuple[float, float, float], microseconds: float
) -> None:
    assert GRID.at(*place) == pytest.approx(microseconds)


def test_no_step_takes_less_than_no_time() -> None:
    falling = StepCosts((1, 2), (1,), (0,), (((10,),), ((4,),)))
    assert falling.at(9, 1, 0) == 0


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = CostTable.from_dict(flat_table())
    path = tmp_path / "table.json"
    path.write_text(table.to_json(), encoding="utf-8")
    assert read_cost_table(path) == table
    assert read_cost_table(path).digest == table.digest
    assert table.step_us("draft", 8, 1, 500) == 210


def test_a_table_without_a_word_about_the_hosts_cores_takes_none() -> None:
    table = CostTable.from_dict(flat_table())
    assert (table.host_core, table.contention) == (False, 1.0)
    given = {**flat_table(), "overlap": True, "host_core": True, "contention": 1.5}
    table = CostTable.from_dict(given)
    assert CostTable.from_dict(json.loads(table.to_json())) == table
    assert (table.host_core, table.contention) == (True, 1.5)


def _without(*path: str) -> dict[str, Any]:
    table = copy.deepcopy(flat_table())
    part = table
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    return table


def _with(value: Any, *path: str) -> dict[str, Any]:
    table = copy.deepcopy(flat_table())
    part = table
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return table


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (_without("acceptance"), "lacks acceptance"),
        (_without("steps", "draft"), "steps lacks draft"),
        (_without("models", "target"), "models lacks target"),
        (_without("steps", "verify", "microseconds"), "steps.verify lacks microseconds"),
        (_with(1.01, "acceptance"), "acceptance must be a number from 0 to 1, not 1.01"),
        (_with(-0.1, "acceptance"), "acceptance"),
        (_with(True, "acceptance"), "acceptance"),
        (_with(float("nan"), "launch_us"), "launch_us must be a number at least 0"),
        (_with([[[-1]]], "steps", "draft", "microseconds"), "microseconds.0..0..0. must be"),
        (_with([[[1, 2]]], "steps", "draft", "microseconds"), "must have 1 entries, not 2"),
        (_with([2, 1], "steps", "draft", "rows"), "steps.draft.rows must ascend"),
        (_with([0], "steps", "draft", "sequences"), "whole number from 1 on"),
        (_with(0, "models", "draft", "layers"), "models.draft.layers"),
        (_with("int4", "models", "draft", "dtype"), "dtype must be one of"),
        (_with("yes", "overlap"), "overlap must be true or false"),
        (_with(1, "host_core"), "host_core must be true or false"),
        (_with(True, "host_core"), "host_core needs overlap: true"),
        (_with(0.9, "contention"), "contention must be a number at least 1"),
        (_with(1.5, "contention"), "contention needs host_core: true"),
        (_with(1, "acceptence"), "unknown entry 'acceptence'"),
        (_with(2, "emulated_device"), "this version reads 1"),
    ],
)
def test_a_wrong_table_is_refused_in_one_sentence(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        read_cost_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not JSON"), ('{"name": 1, "name": 2}', "'name' is given twice")]
)
def test_text_that_is_no_table_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        read_cost_table(path)


def test_a_table_without_a_draft_needs_no_draft_steps() -> None:
    values = _without("models", "draft")
    values["steps"] = {name: values["steps"][name] for name in ("prefill", "verify")}
    assert not CostTable.from_dict(values).has_draft


def test_the_shipped_tables_are_whole() -> None:
    names = shipped_tables()
    assert names
    for name in names:
        assert read_cost_table(table_path(name)).name == name
