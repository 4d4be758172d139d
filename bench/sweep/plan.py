"""What a sweep measures: candidates, loads and configurations, from names on the command line."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.results.records import Candidate, Configuration, Load, Objective, Run
from bench.servers import SAME_WORK
from bench.sweep.errors import PlanError
from bench.sweep.pairs import SHIPPED, ModelPair
from launcher.checks import prepare
from launcher.options import ENVIRONMENT_CONFIG, Setting, merge, settings
from pdv_mp.config import ConfigError
from pdv_mp.emulation.device_name import is_emulated
from pdv_mp.model.errors import ModelError
from pdv_mp.topology import topology

AGAIN = " (again)"
"""Ends the name of the reference's twin."""

DEFAULT_CONCURRENCY = (1, 8, 32)

_OBJECTIVES = {"ttft": "ttft_ms", "tpot": "tpot_ms", "e2e": "e2e_ms"}
_SET_HERE = {
    "topology": "--topologies",
    "topology_file": "--topologies",
    "model": "--pairs",
    "draft_model": "--pairs",
    "host": "the sweep itself",
    "port": "the sweep itself",
    "token_file": "the sweep itself",
    "trace": "the sweep itself",
}
_MUST_MATCH = ("versions", "source", "machine")
"""Facts of the environment that two runs must have in common to be put together."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cell is in a run: the numbers of its pair, block, load and candidate, and its turn
    within block and load."""

    pair: int
    block: int
    load: int
    candidate: int
    order: int

    @property
    def id(self) -> str:
        """The cell's id; it holds no name."""
        return f"p{self.pair}-b{self.block:04}-l{self.load}-c{self.candidate}"


def places(run: Run, pair: int, block: int) -> Iterator[Place]:
    """The cells of a block in the order in which they are measured, which is rotated from block to
    block and from load to load, so that none is always first."""
    count = len(run.candidates)
    for load in range(len(run.loads)):
        for order in range(count):
            yield Place(pair, block, load, (block + load + order) % count, order)


def shortest_block(run: Run) -> float:
    """Seconds that one block of one pair takes at least."""
    return len(run.loads) * len(run.candidates) * (run.ramp + run.window)


def make_candidates(
    named: Mapping[str, tuple[str, Mapping[str, str]]], common: Mapping[str, str], again: bool
) -> list[Candidate]:
    """The candidates by name, each a topology with options of its own, and a twin of the first.

    ``common``: options for all, beside :data:`bench.servers.SAME_WORK`. Raises PlanError for an
    unknown topology or option, and if there is nothing to compare.
    """
    found = []
    for name, (row, own) in named.items():
        try:
            topology(row)
        except ConfigError as error:
            raise PlanError(str(error)) from error
        options = {**SAME_WORK, **typed_options({**common, **own})}
        found.append(Candidate(name=name, topology=row, options=options))
    if again:
        first = found[0]
        if first.name + AGAIN in named:
            raise PlanError(f"{first.name + AGAIN!r} is the name of the twin of {first.name!r}")
        found.append(msgspec.structs.replace(first, name=first.name + AGAIN, twin_of=first.name))
    if len(found) < 2:
        raise PlanError("there is nothing to compare: name two topologies, or use --again")
    return found


def typed_options(texts: Mapping[str, str]) -> dict[str, Any]:
    """Options of ``pdv-launch`` with values of their types. Raises PlanError."""
    known = {setting.name: setting for setting in settings()}
    found: dict[str, Any] = {}
    for given, text in texts.items():
        name = given.replace("-", "_")
        if name in _SET_HERE:
            raise PlanError(f"option {given!r} of the servers is set by {_SET_HERE[name]}")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise PlanError(f"pdv-launch has no option {given!r}{hint}")
        found[name] = _converted(known[name], given, text)
    return found


def _converted(setting: Setting, given: str, text: str) -> Any:
    try:
        return setting.convert(text, f"option {given}")
    except ConfigError as error:
        raise PlanError(str(error)) from error


def make_loads(
    concurrencies: Sequence[int],
    rates: Sequence[float],
    burstiness: float,
    trace: Path | None,
) -> list[Load]:
    """The loads; without any, closed loops of :data:`DEFAULT_CONCURRENCY` clients."""
    if not concurrencies and not rates and trace is None:
        concurrencies = DEFAULT_CONCURRENCY
    loads = [Load(name=f"C={count}", kind="closed", concurrency=count) for count in concurrencies]
    for rate in rates:
        bursts = "" if burstiness == 1 else f",burstiness={burstiness:g}"
        name = f"rate={rate:g}{bursts}"
        loads.append(Load(name=name, kind="open", rate=rate, burstiness=burstiness))
    if trace is not None:
        loads.append(Load(name=f"trace={trace.name}", kind="trace", trace=str(trace)))
    names = [load.name for load in loads]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PlanError(f"the load {twice} is given twice")
    return loads


def parse_objective(text: str) -> Objective:
    """``ttft=500,tpot=50,e2e=3000``, ms, any of them. Raises PlanError."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if name not in _OBJECTIVES or _OBJECTIVES[name] in found or not 0 < limit < math.inf:
            raise PlanError(f"--slo {text!r} is not of the form ttft=500,tpot=50,e2e=3000 (ms)")
        found[_OBJECTIVES[name]] = limit
    return Objective(**found)


def configure(pair: ModelPair, candidate: Candidate) -> Configuration:
    """How the candidate's server will be set up for the pair, checked as ``pdv-launch`` does it.

    Raises PlanError for what can be known to be wrong before it starts.
    """
    given = {**server_options(pair, candidate), "topology": candidate.topology, "port": 0}
    file = os.environ.get(ENVIRONMENT_CONFIG)
    try:
        asked = merge(given, os.environ, Path(file) if file else None).config()
        if is_emulated(asked.model.device):
            raise PlanError(
                f"{candidate.name} is on {asked.model.device}, and what a sweep measures is never "
                "mixed with what is emulated: use pdv-bench emulate"
            )
        config = prepare(asked)
    except (ConfigError, ModelError) as error:
        raise PlanError(f"{candidate.name} with the pair {pair.name!r}: {error}") from error
    options = json.loads(config.to_json())
    # As they were named: where a folder lies says nothing that the weights' fingerprints do not.
    options["model"]["model"] = pair.record.model or SHIPPED
    options["model"]["draft_model"] = pair.record.draft_model or SHIPPED
    return Configuration(pair=pair.name, candidate=candidate.name, options=options)


def server_options(pair: ModelPair, candidate: Candidate) -> dict[str, Any]:
    """The options of a candidate's server for a pair, but for its topology."""
    models = {"model": str(pair.verifier), "draft_model": str(pair.draft)}
    return {**models, **candidate.options}


def first_difference(there: Run, asked: Run) -> str | None:
    """What keeps a run from being taken up as another one, in words; None if nothing does."""
    for part, old, new in zip(_PARTS, _comparable(there), _comparable(asked), strict=True):
        found = _difference(part, old, new)
        if found is not None:
            where, was, now = found
            return f"{where} is {_shown(was)} there and {_shown(now)} now"
    return None


_FIELDS = (
    *("candidates", "reference", "pairs", "loads", "blocks", "window", "ramp", "precision"),
    *("seed", "workload", "objective"),
)
_PARTS = (*_FIELDS, *_MUST_MATCH, "configurations")


def _comparable(run: Run) -> Iterator[Any]:
    """Of each part, what JSON keeps of it."""
    found = msgspec.json.decode(msgspec.json.encode(run))
    yield from (found[name] for name in _FIELDS)
    yield from (found["environment"].get(name) for name in _MUST_MATCH)
    yield found["configurations"]


def _difference(where: str, old: Any, new: Any) -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = _difference(f"{where}.{key}", old.get(key), new.get(key))
            if found is not None:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list):
        for number in range(max(len(old), len(new))):
            pair = [one[number] if number < len(one) else None for one in (old, new)]
            found = _difference(f"{where}[{number}]", *pair)
            if found is not None:
                return found
        return None
    return None if old == new else (where, old, new)


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:
        return repr(value["name"])
    text = json.dumps(value)
    return "missing" if value is None else text if len(text) <= 60 else text[:16] + "…"
