"""What ``--topology-file`` names is YAML:

    replicas: 1
    tokenizers: 1
    workers:
      - {name: prefill, stages: [prefill]}
      - {name: decode, stages: [verify, draft], threads: 2, max_batch: 8}

Each of the stages prefill, draft and verify has one worker, and only the one with ``verify`` may
have another stage as well; its stages are in the order of their urgency. Only ``name`` and
``stages`` are required; ``device`` takes what ``--device`` takes. Without ``tokenizers`` the front
tokenizes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.devices import check_device
from launcher.yaml_file import read_yaml_map
from pdv_mp.config import ConfigError, check_text
from pdv_mp.topology_rows import (
    MAX_REPLICAS,
    MAX_TOKENIZERS,
    MAX_WORKER_NAME,
    STAGES,
    TOKENIZER,
    Topology,
    Worker,
)

FLAG = "--topology-file"

MAX_COUNT = 4096
"""Most threads of a worker, and most requests of its batch."""

RESERVED = ("engine", "trace", TOKENIZER)
"""Names that begin those of other files in the run directory, or of other processes."""

_NAME = re.compile(r"[a-z][a-z0-9]*")


def read_topology_file(path: Path) -> Topology:
    """The row in a file; its name is the file's, without the suffix.

    Raises ConfigError, one sentence, for a table that is impossible.
    """
    check_text(path.stem, f"the name of {FLAG}")
    values = read_yaml_map(path, FLAG, "workers and replicas")
    try:
        return _row(path.stem, values)
    except ConfigError as error:
        raise ConfigError(f"{FLAG} {path}: {error}") from error


def _row(name: str, values: Mapping[Any, Any]) -> Topology:
    known = _checked(values, ("workers", "replicas", "tokenizers"), "")
    tokenizers = _count(known.get("tokenizers", 0), "tokenizers", MAX_TOKENIZERS, least=0)
    replicas = _count(known.get("replicas", 1), "replicas", MAX_REPLICAS)
    listed = known.get("workers")
    if not isinstance(listed, list) or not listed:
        raise ConfigError("'workers' must be a list of at least one worker")
    workers = tuple(_worker(number, item) for number, item in enumerate(listed, 1))
    _check_once((worker.name for worker in workers), "workers are named")
    _check_once((stage for worker in workers for stage in worker.stages), "workers host")
    hosted = {stage for worker in workers for stage in worker.stages}
    for stage in STAGES:
        if stage not in hosted:
            raise ConfigError(f"no worker hosts {stage!r}")
    for worker in workers:
        if not worker.schedules and len(worker.stages) > 1:
            raise ConfigError(
                f"worker {worker.name!r} hosts {' and '.join(worker.stages)}; only the one that "
                "hosts 'verify' may host another stage as well"
            )
        if not worker.schedules and worker.max_batch is not None:
            raise ConfigError(
                f"worker {worker.name!r} has max_batch; only the one that hosts 'verify' forms "
                "batches of requests: give it there"
            )
    return Topology(name, workers, replicas, tokenizers)


def _worker(number: int, values: Any) -> Worker:
    if not isinstance(values, Mapping):
        raise ConfigError(f"worker {number} must be a map with 'name' and 'stages'")
    name = values.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > MAX_WORKER_NAME:
        raise ConfigError(
            f"worker {number} has the name {name!r}; a name is a small letter and then at most "
            f"{MAX_WORKER_NAME - 1} small letters and digits"
        )
    if name in RESERVED:
        raise ConfigError(f"worker {number} has the name {name!r}, which other things have")
    where = f" of worker {name!r}"
    known = _checked(values, ("name", "stages", "threads", "max_batch", "device"), where)
    device = str(known["device"]) if "device" in known else None
    if device is not None:
        check_device(device, f"worker {name!r}: device")
    return Worker(
        name,
        _stages(known.get("stages"), where),
        threads=_optional_count(known, "threads", where),
        max_batch=_optional_count(known, "max_batch", where),
        device=device,
    )


def _stages(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"'stages'{where} must be a list of {', '.join(STAGES)}")
    for stage in value:
        if stage not in STAGES:
            hint = _hint(str(stage), STAGES)
            raise ConfigError(f"{stage!r}{where} is not a stage; use {', '.join(STAGES)}{hint}")
    return tuple(value)


def _checked(values: Mapping[Any, Any], names: Collection[str], where: str) -> dict[str, Any]:
    """The same with ``-`` written as ``_``, and without what is empty."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in names:
            raise ConfigError(f"unknown key {key!r}{where}{_hint(name, names)}")
        if name in found:
            raise ConfigError(f"{name!r}{where} is given twice")
        if value is not None:
            found[name] = value
    return found


def _optional_count(values: Mapping[str, Any], key: str, where: str) -> int | None:
    return _count(values[key], f"{key}{where}", MAX_COUNT) if key in values else None


def _count(value: Any, what: str, most: int, least: int = 1) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{what} is {value!r}; it must be a whole number from {least} to {most}")
    return value


def _check_once(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(f"two {what} {name!r}")
        seen.add(name)


def _hint(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
