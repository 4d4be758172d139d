"""``docs/benchmark.md``: its commands can be given, and it names every field of the raw records."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from bench.cli import COMMANDS, main
from bench.results.records import CellRecord, End, RequestRecord, Run

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
LINES = re.findall(r"^    (pdv-bench .+)$", PAGE, re.MULTILINE)


def test_there_are_commands() -> None:
    assert len(LINES) >= 6
    assert {line.split()[1] for line in LINES} <= set(COMMANDS)


@pytest.mark.parametrize("line", LINES)
def test_its_commands_are_understood(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    context = click.Context(main, info_name="pdv-bench")
    command = main.get_command(context, name)
    assert command is not None
    with command.make_context(name, arguments, parent=context):
        pass


def test_its_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make ([a-z-]+)`", PAGE)):
        assert re.search(rf"^{target}: .*## ", makefile, re.MULTILINE), target


@pytest.mark.parametrize("record", [Run, CellRecord, RequestRecord, End])
def test_every_field_is_named(record: type) -> None:
    missing = [name for name in record.__struct_fields__ if f"`{name}`" not in PAGE]
    assert not missing


def test_every_command_is_there() -> None:
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        assert command.name == name
