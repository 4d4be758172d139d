"""The table of topologies: which worker process hosts which stages, and with how many replicas.

A *stage* is prefill, draft or verify. A *worker* is a process that hosts some stages. Handing work
to a stage of the same worker is a function call, to one of another worker a message; nothing else
differs between the rows. Tokenizing belongs to the front, or to processes of their own.
"""

from __future__ import annotations

import dataclasses
import difflib

from pdv_mp.config import ConfigError, EngineConfig, SchedulingOptions
from pdv_mp.topology_rows import FRONT, POOLS, STAGES, Topology, Worker

__all__ = [
    "FRONT",
    "POOLS",
    "ROWS",
    "STAGES",
    "Topology",
    "Worker",
    "check_kv_handoff",
    "scheduling_of",
    "topology",
    "topology_of",
]

ALL_STAGES = ("verify", "draft", "prefill")
PREFILL = Worker("prefill", ("prefill",))
DRAFT = Worker("draft", ("draft",))

UNIFIED = Topology("unified", (Worker("worker", ALL_STAGES),))
BASELINE = Topology("baseline", (Worker("worker", ALL_STAGES, max_batch=1),), replicas=4)
PD = Topology("pd", (PREFILL, Worker("decode", ("verify", "draft"))), tokenizers=1)
PDV = Topology("pdv", (PREFILL, DRAFT, Worker("verify", ("verify",))), tokenizers=1)
PD_LEGACY = Topology(
    "pd-legacy", (PREFILL, Worker("decode", ("verify", "draft"), max_batch=6)), tokenizers=1
)
PDV_LEGACY = Topology(
    "pdv-legacy", (PREFILL, DRAFT, Worker("verify", ("verify",), max_batch=12)), tokenizers=1
)

ROWS: dict[str, Topology] = {
    row.name: row for row in (UNIFIED, BASELINE, PD, PDV, PD_LEGACY, PDV_LEGACY)
}
"""All rows; the legacy ones have the batch limits of the engines that pd and pdv come from."""


def topology(name: str) -> Topology:
    """The row of that name. Raises ConfigError for one that is unknown."""
    if name in ROWS:
        return ROWS[name]
    close = difflib.get_close_matches(name, ROWS, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"topology {name!r} is not one of {', '.join(ROWS)}{hint}")


def topology_of(config: EngineConfig) -> Topology:
    """The row that a configuration asks for: its own, else the one that it names.

    Raises ConfigError as :func:`topology` does.
    """
    return topology(config.topology) if config.table is None else config.table


def check_kv_handoff(config: EngineConfig, row: Topology) -> None:
    """Raises ConfigError if KV is to be handed on in a row that has nobody to do so."""
    if config.cache.kv_handoff != "pool" and "prefill" not in row.lanes(0):
        raise ConfigError(
            f"--kv-handoff {config.cache.kv_handoff} is for topologies with a prefill worker (pd, "
            f"pdv); in {row.name!r} the worker that verifies computes prompts itself"
        )


def scheduling_of(config: EngineConfig) -> SchedulingOptions:
    """How a replica schedules: as configured, within the batch limit of its row."""
    options, limit = config.scheduling, topology_of(config).scheduler.max_batch
    if limit is None or limit >= options.max_num_seqs:
        return options
    return dataclasses.replace(options, max_num_seqs=limit)
