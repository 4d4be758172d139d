"""The table of topologies: which worker process hosts which stages, and with how many replicas.

A *stage* is prefill, draft or verify; tokenizing belongs to the front here. A *worker* is a process
that hosts some stages. Handing work to a stage of the same worker is a function call, to one of
another worker a message; nothing else differs between the rows.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from pdv_mp.config import ConfigError

FRONT = "front"
"""Name of the process that faces the clients; every topology has exactly one."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One process of a replica: its name and the stages that it hosts, most urgent first."""

    name: str
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    """One row: the workers of a replica, and the number of replicas."""

    name: str
    workers: tuple[Worker, ...]
    replicas: int = 1

    @property
    def worker_names(self) -> tuple[str, ...]:
        """Names of all worker processes, ``<worker>-<replica>``."""
        return tuple(
            f"{worker.name}-{replica}"
            for replica in range(self.replicas)
            for worker in self.workers
        )

    @property
    def process_names(self) -> tuple[str, ...]:
        """Names of all processes that serve, the front first."""
        return (FRONT, *self.worker_names)


UNIFIED = Topology("unified", (Worker("worker", ("verify", "draft", "prefill")),))

TOPOLOGIES: dict[str, Topology] = {row.name: row for row in (UNIFIED,)}
"""The rows that can be served."""

TOPOLOGY_NAMES: tuple[str, ...] = ("unified", "baseline", "pd", "pdv", "auto")
"""The names of all rows, those that cannot be served yet included."""


def topology(name: str) -> Topology:
    """The row of that name. Raises ConfigError for one that is unknown or not built yet."""
    if name in TOPOLOGIES:
        return TOPOLOGIES[name]
    if name in TOPOLOGY_NAMES:
        built = " or ".join(repr(row) for row in TOPOLOGIES)
        raise ConfigError(f"topology {name!r} is not built yet; use {built}")
    close = difflib.get_close_matches(name, TOPOLOGY_NAMES, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"topology {name!r} is not one of {', '.join(TOPOLOGY_NAMES)}{hint}")
