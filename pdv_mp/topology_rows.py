"""What a row of the table of topologies says, and which processes follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FRONT = "front"
"""Name of the process that faces the clients; every topology has exactly one."""

POOLS = "pools"
"""Name of the process that owns what several workers map: weights and KV."""

GATEWAY = "gateway"
"""Name of the process that speaks HTTP; a client of the front, and no part of a topology."""

METRICS = "metrics"
"""Name of the process that answers Prometheus; a client of the front like the gateway."""

BESIDE = (GATEWAY, METRICS)
"""Names of the processes that the launcher starts on request besides those of a topology."""

TOKENIZER = "tokenizer"
"""Name, without its number, of a process that tokenizes for the front."""

STAGES = ("prefill", "draft", "verify")
"""The stages that run a model, in the order in which a request first meets them."""

MAX_WORKER_NAME = 16
"""Characters of a worker's name; the kernel bounds the names of its sockets."""

MAX_REPLICAS = 64

MAX_TOKENIZERS = 64


@dataclass(frozen=True, slots=True)
class Worker:
    """One process of a replica: its name and the stages that it hosts, most urgent first.

    ``threads``: CPU threads of its kernels; None in a row that the launcher has not prepared.
    ``max_batch``: most requests in one of its batches, besides ``--max-num-seqs``.
    ``device``: where it computes; None is ``--device``.
    """

    name: str
    stages: tuple[str, ...]
    threads: int | None = None
    max_batch: int | None = None
    device: str | None = None

    @property
    def schedules(self) -> bool:
        """Whether it holds its replica's scheduler: that is the worker that verifies."""
        return "verify" in self.stages


@dataclass(frozen=True, slots=True)
class Topology:
    """One row: the workers of a replica, and the number of replicas.

    ``tokenizers``: processes that tokenize; with none the front does it.
    """

    name: str
    workers: tuple[Worker, ...]
    replicas: int = 1
    tokenizers: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Topology:
        """The inverse of ``dataclasses.asdict``. Raises TypeError for other keys."""
        workers = tuple(
            Worker(**{**worker, "stages": tuple(worker["stages"])}) for worker in values["workers"]
        )
        return cls(**{**values, "workers": workers})

    @property
    def worker_names(self) -> tuple[str, ...]:
        """Names of all worker processes, ``<worker>-<replica>``."""
        return tuple(name for replica in range(self.replicas) for name in self.names_in(replica))

    def names_in(self, replica: int) -> tuple[str, ...]:
        """Names of the worker processes of one replica."""
        return tuple(f"{worker.name}-{replica}" for worker in self.workers)

    @property
    def scheduler(self) -> Worker:
        """The row of the worker that holds the scheduler of a replica."""
        return next(worker for worker in self.workers if worker.schedules)

    @property
    def scheduler_names(self) -> tuple[str, ...]:
        """Names of the processes with a scheduler, by replica."""
        return tuple(f"{self.scheduler.name}-{replica}" for replica in range(self.replicas))

    @property
    def tokenizer_names(self) -> tuple[str, ...]:
        """Names of the processes that tokenize."""
        return tuple(f"{TOKENIZER}-{number}" for number in range(self.tokenizers))

    @property
    def has_pools(self) -> bool:
        """Whether a process of its own owns weights and KV, because several workers map them."""
        return len(self.workers) * self.replicas > 1

    @property
    def process_names(self) -> tuple[str, ...]:
        """Names of all processes that serve, the front first."""
        pools = (POOLS,) if self.has_pools else ()
        return (FRONT, *pools, *self.worker_names, *self.tokenizer_names)

    def place(self, process_name: str) -> tuple[Worker, int]:
        """The row and the replica of a worker process. Raises KeyError for any other name."""
        for worker in self.workers:
            for replica in range(self.replicas):
                if process_name == f"{worker.name}-{replica}":
                    return worker, replica
        raise KeyError(process_name)

    def lanes(self, replica: int) -> dict[str, str]:
        """By stage, the processes that host those which the scheduler's worker of a replica does
        not."""
        return {
            stage: f"{worker.name}-{replica}"
            for worker in self.workers
            if not worker.schedules
            for stage in worker.stages
        }
