"""What every engine's file says of itself: :class:`Peer`; and what its program is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What a program is to serve.

    ``model``, ``draft``: folders of checkpoints; ``mode``: one of the peer's; ``threads``: that
    compute; ``concurrency``: the most requests at once; ``context``: the most tokens of one;
    ``draft_tokens``: the draft length where it is fixed; ``folder``: where converted weights may
    be kept; ``url``: of a server that is there already.
    """

    model: str
    draft: str
    mode: str
    threads: int
    concurrency: int
    context: int
    draft_tokens: int
    folder: str
    url: str = ""


@dataclass(frozen=True)
class Answer:
    """New ids of every prompt, in the prompts' order.

    ``tokens``: how many there are if the engine counts them and does not say which they are.
    ``speculation``: cycles, drafted and accepted tokens of all requests, where they are known.
    """

    ids: list[list[int]]
    tokens: int | None = None
    speculation: dict[str, int] | None = None


Generate = Callable[[Sequence[Sequence[int]], int], Answer]
"""All prompts at once, so many new tokens each: greedy, the end-of-sequence id ignored."""


@dataclass(frozen=True)
class Peer:
    """An engine.

    ``name`` names its environment as well. ``package``: whose version is reported, if any.
    ``modes``: ways to run it; ``requirements``: what pip installs, none for engines that run in our
    environment; ``removed``: dependencies that are taken away again, since they fail beside a CPU
    build of torch and are not used. ``variables``: environment variables of its program;
    ``{threads}`` in them is the number of threads, ``{cores}`` as many of the cores,
    ``{environment}`` its virtual environment, ``{folder}`` that of what it converts or compiles.
    ``most``: the highest concurrency that a mode takes part in, where there is one. ``needs_url``:
    it takes part if a server's address is given.
    """

    name: str
    package: str
    modes: tuple[str, ...]
    load: Callable[[Setting], Generate]
    requirements: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)
    needs_url: bool = False


def as_setting(values: Mapping[str, Any]) -> Setting:
    """From the first line of the pipe."""
    return Setting(**values)
