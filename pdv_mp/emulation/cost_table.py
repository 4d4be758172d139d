"""The cost table of an emulated device: what a step takes, as typed and checked JSON.

A step is one forward pass of one model in one stage. What it takes is given on a grid over the
sequences of its batch, the rows (query tokens) of each sequence, and the tokens that each has in
its cache; between the points it is interpolated linearly in each of the three, beyond the last one
it goes on as it went before it, and below the first one it stays as it is there. Fractions (rows or
context of a ragged batch are means) are fine.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdv_mp.config import ConfigError

FORMAT = 1

STEPS = ("prefill", "verify")
"""Steps of the verifier, which every table has."""

DRAFT_STEPS = ("prefill_draft", "draft")
"""Steps of the draft model, which a table with one has."""

_TYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """A model's shape, as far as the account of its KV and its weights' bytes need it."""

    name: str
    dtype: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class StepCosts:
    """``microseconds[s][r][c]``: a step with ``sequences[s]`` sequences of ``rows[r]`` rows each,
    behind ``context[c]`` tokens each."""

    sequences: tuple[int, ...]
    rows: tuple[int, ...]
    context: tuple[int, ...]
    microseconds: tuple[tuple[tuple[float, ...], ...], ...]

    def at(self, sequences: float, rows: float, context: float) -> float:
        """Microseconds of a step; ``rows`` and ``context`` are means over its sequences."""
        places = [
            _place(axis, value)
            for axis, value in zip(
                (self.sequences, self.rows, self.context), (sequences, rows, context), strict=True
            )
        ]
        total = 0.0
        for corner in itertools.product((0, 1), repeat=3):
            weight = math.prod(
                part if side else 1.0 - part for side, (_, part) in zip(corner, places, strict=True)
            )
            if weight:
                s, r, c = (index + side for side, (index, _) in zip(corner, places, strict=True))
                total += weight * self.microseconds[s][r][c]
        return max(0.0, total)

    def scaled(self, factor: float) -> StepCosts:
        """The same with all times multiplied."""
        times = tuple(
            tuple(tuple(value * factor for value in line) for line in plane)
            for plane in self.microseconds
        )
        return StepCosts(self.sequences, self.rows, self.context, times)


def _place(axis: Sequence[int], value: float) -> tuple[int, float]:
    """The point before a value, and how far it is on the way to the next one (above 1 beyond the
    last)."""
    if len(axis) == 1 or value <= axis[0]:
        return 0, 0.0
    index = min(bisect_right(axis, value) - 1, len(axis) - 2)
    return index, (value - axis[index]) / (axis[index + 1] - axis[index])


@dataclass(frozen=True, slots=True)
class CostTable:
    """An emulated device and the pair of models that it runs.

    ``origin``: where the numbers are from, one sentence. ``acceptance``: the probability that a
    draft token is the verifier's own. ``memory_bytes``: for weights and KV. ``launch_us``: what the
    host does before a step's work is with the device; ``synchronize_us``: what passes between the
    step's end and the host's knowing of it. ``time_slice_us``: after so long the device goes on
    with the step of another process that waits; 0 lets each step end. ``overlap``: steps of
    different processes do not wait for each other at all. ``host_core``: the device is this host's
    CPU and a step computes on one core of it, which everything else that runs here wants, too;
    ``contention``: how many times as long it takes while another process computes, 1 or more.
    """

    name: str
    origin: str
    acceptance: float
    memory_bytes: int
    launch_us: float
    synchronize_us: float
    time_slice_us: float
    overlap: bool
    models: Mapping[str, ModelSizes]
    steps: Mapping[str, StepCosts]
    host_core: bool = False
    contention: float = 1.0

    @property
    def has_draft(self) -> bool:
        """Whether there is a draft model."""
        return "draft" in self.models

    @property
    def weight_bytes(self) -> int:
        """Of all models together."""
        return sum(model.weight_bytes for model in self.models.values())

    def step_us(self, step: str, sequences: float, rows: float, context: float) -> float:
        """What a step takes, launch and synchronisation included, on a device with nothing else
        to do."""
        device = self.steps[step].at(sequences, rows, context)
        return device + self.launch_us + self.synchronize_us

    def draft_us(self, k: int, sequences: float, context: float) -> float:
        """What a draft of ``k`` tokens takes, all steps of which are launched at once."""
        steps = k * self.steps["draft"].at(sequences, 1, context)
        return steps + self.launch_us + self.synchronize_us if k else 0.0

    @property
    def digest(self) -> str:
        """A hash of all that it says."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The text of a file that :func:`read_cost_table` reads."""
        values: dict[str, Any] = {"emulated_device": FORMAT}
        for name in (*_SCALARS, *(_HOST_SCALARS if self.host_core else ())):
            values[name] = getattr(self, name)
        values["models"] = {
            role: {name: getattr(model, name) for name in ModelSizes.__slots__}
            for role, model in self.models.items()
        }
        lines = []
        for step, costs in self.steps.items():
            axes = {name: list(getattr(costs, name)) for name in ("sequences", "rows", "context")}
            planes = ",\n    ".join(json.dumps(plane) for plane in costs.microseconds)
            head = json.dumps(axes)[:-1]
            lines.append(f'  "{step}": {head}, "microseconds": [\n    {planes}]}}')
        text = json.dumps(values, indent=1)[:-2]
        return text + ',\n "steps": {\n' + ",\n".join(lines) + "}\n}\n"

    @classmethod
    def from_dict(cls, values: Any) -> CostTable:
        """Raises ConfigError, one sentence, for anything that is not a whole cost table."""
        needed = ("emulated_device", *_SCALARS, "models", "steps")
        known = _map(values, "the cost table", needed, _HOST_SCALARS)
        if known["emulated_device"] != FORMAT:
            raise ConfigError(
                f"emulated_device is {known['emulated_device']!r}; this version reads {FORMAT}"
            )
        models = _map(known["models"], "models", ("target",), ("draft",))
        wanted = STEPS + (DRAFT_STEPS if "draft" in models else ())
        steps = _map(known["steps"], "steps", wanted)
        host: dict[str, Any] = {}
        if "host_core" in known:
            host["host_core"] = _truth(known["host_core"], "host_core")
        if "contention" in known:
            host["contention"] = _number(known["contention"], "contention", least=1.0)
        table = cls(
            name=_text(known["name"], "name"),
            origin=_text(known["origin"], "origin"),
            acceptance=_number(known["acceptance"], "acceptance", most=1.0),
            memory_bytes=_count(known["memory_bytes"], "memory_bytes"),
            launch_us=_number(known["launch_us"], "launch_us"),
            synchronize_us=_number(known["synchronize_us"], "synchronize_us"),
            time_slice_us=_number(known["time_slice_us"], "time_slice_us"),
            overlap=_truth(known["overlap"], "overlap"),
            models={role: _sizes(model, f"models.{role}") for role, model in models.items()},
            steps={name: _costs(steps[name], f"steps.{name}") for name in wanted},
            **host,
        )
        if table.host_core and not table.overlap:
            raise ConfigError("host_core needs overlap: true: its processes do not take turns")
        if table.contention > 1 and not table.host_core:
            raise ConfigError("contention needs host_core: true")
        return table


_SCALARS = (
    "name",
    "origin",
    "acceptance",
    "memory_bytes",
    "launch_us",
    "synchronize_us",
    "time_slice_us",
    "overlap",
)
_HOST_SCALARS = ("host_core", "contention")
"""Which a table need not have."""


def read_cost_table(path: Path) -> CostTable:
    """The table in a JSON file. Raises ConfigError, one sentence, that names the file."""
    try:
        return CostTable.from_dict(
            json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
        )
    except OSError as error:
        raise ConfigError(f"cannot read the cost table {path}: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"cost table {path}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"cost table {path} is not JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{twice!r} is given twice")
    return found


def _map(
    value: Any, what: str, needed: Sequence[str], allowed: Sequence[str] = ()
) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} must be a map, not {value!r}")
    missing = [name for name in needed if name not in value]
    if missing:
        raise ConfigError(f"{what} lacks {', '.join(missing)}")
    unknown = [str(name) for name in value if name not in (*needed, *allowed)]
    if unknown:
        raise ConfigError(f"{what} has the unknown entry {unknown[0]!r}")
    return dict(value)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{what} must be a text, not {value!r}")
    return value


def _truth(value: Any, what: str) -> bool:
    if type(value) is not bool:
        raise ConfigError(f"{what} must be true or false, not {value!r}")
    return value


def _number(value: Any, what: str, least: float = 0.0, most: float = math.inf) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not least <= value <= most:
        limit = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise ConfigError(f"{what} must be a number {limit}, not {value!r}")
    return float(value)


def _count(value: Any, what: str, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ConfigError(f"{what} must be a whole number from {least} on, not {value!r}")
    return value


def _sizes(value: Any, what: str) -> ModelSizes:
    known = _map(value, what, ModelSizes.__slots__)
    if known["dtype"] not in _TYPES:
        raise ConfigError(f"{what}.dtype must be one of {', '.join(_TYPES)}")
    counts = {
        name: _count(known[name], f"{what}.{name}")
        for name in ModelSizes.__slots__
        if name not in ("name", "dtype")
    }
    return ModelSizes(name=_text(known["name"], f"{what}.name"), dtype=known["dtype"], **counts)


def _costs(value: Any, what: str) -> StepCosts:
    known = _map(value, what, StepCosts.__slots__)
    axes = [
        _axis(known[name], f"{what}.{name}", least)
        for name, least in (("sequences", 1), ("rows", 1), ("context", 0))
    ]
    times = _grid(known["microseconds"], f"{what}.microseconds", [len(axis) for axis in axes])
    return StepCosts(axes[0], axes[1], axes[2], times)


def _axis(value: Any, what: str, least: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{what} must be a list of whole numbers")
    axis = tuple(_count(item, what, least) for item in value)
    if any(one >= other for one, other in itertools.pairwise(axis)):
        raise ConfigError(f"{what} must ascend")
    return axis


def _grid(value: Any, what: str, sizes: Sequence[int]) -> Any:
    """Nested tuples of numbers, of these sizes."""
    if not sizes:
        return _number(value, what)
    if not isinstance(value, list) or len(value) != sizes[0]:
        found = len(value) if isinstance(value, list) else repr(value)
        raise ConfigError(f"{what} must have {sizes[0]} entries, not {found}")
    return tuple(_grid(item, f"{what}[{index}]", sizes[1:]) for index, item in enumerate(value))
