"""What several measurements take on their command lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from pdv_mp.emulation.device_name import is_emulated


def named(name: str) -> tuple[str, dict[str, str]]:
    """The topology and the options of its own that a name stands for, as in
    ``pdv+kv-handoff=copy``. Raises click.BadParameter for an option without a value."""
    topology, *texts = name.split("+")
    return topology, _pairs(texts)


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    found = dict(text.partition("=")[::2] for text in texts)
    if not all(found.values()):
        raise click.BadParameter("an option is NAME=VALUE")
    if is_emulated(found.get("device", "")):
        raise click.BadParameter(
            f"device={found['device']}: what is measured is never mixed with what is emulated; use "
            "pdv-bench emulate"
        )
    return found


def whole_numbers(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    """A list of numbers of at least 1. Raises click.BadParameter for anything else."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers") from error
    if min(found) < 1:
        raise click.BadParameter(f"{text!r} has a number below 1")
    return found


def launch_options(
    context: click.Context, parameter: click.Parameter, texts: Sequence[str]
) -> dict[str, str]:
    """Options of ``pdv-launch`` by name. Raises click.BadParameter for one without a value."""
    return _pairs(texts)


def seconds(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """A length of time: ``90s``, ``10m``, ``2h``, or seconds. Raises click.BadParameter."""
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    try:
        found = float(text[:-1]) * factor if factor else float(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a time such as 90s, 10m or 2h") from error
    if not 0 < found < float("inf"):
        raise click.BadParameter(f"{text!r} is not a time above zero")
    return found
