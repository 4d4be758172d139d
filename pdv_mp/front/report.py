"""What the front says of itself and of the server: ``welcome`` and ``info``."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pdv_mp
from pdv_mp.config import EngineConfig
from pdv_mp.front.admission import ModelFacts
from pdv_mp.front.connections import ClientSocket
from pdv_mp.front.engine_facts import together
from pdv_mp.front.inquiries import EngineInfo
from pdv_mp.front.outbox import Connection
from pdv_mp.front.peer_edge import PeerEdge
from pdv_mp.front.processes import OtherProcesses
from pdv_mp.front.replicas import Replica
from pdv_mp.front.roster import Roster
from pdv_mp.front.service import Service
from pdv_mp.front.sums import Departed, merged
from pdv_mp.front.tokenizers import Tokenizer
from pdv_mp.topology import FRONT, topology_of
from pdv_mp.topology_rows import GATEWAY, METRICS
from pdv_mp.workers.handoffs import Handoffs
from pdv_mp.workers.handoffs import report as handoff_report


class Reporter:
    """Builds ``welcome`` and ``info`` from the facts of the start-up and the present counters."""

    def __init__(
        self,
        config: EngineConfig,
        replicas: Sequence[Replica],
        tokenizers: Sequence[Tokenizer],
        instance: str,
        limits: ModelFacts,
        handoffs: Handoffs,
    ) -> None:
        self._config = config
        self._configuration = json.loads(config.to_json())
        self._replicas = replicas
        self._tokenizers = tokenizers
        self._facts = together(replicas)
        row = topology_of(config)
        wanted = {GATEWAY: config.http.http_port, METRICS: config.server.metrics_port}
        beside = [name for name, port in wanted.items() if port is not None]
        self._roster = Roster(row, replicas, beside)
        self._others = OtherProcesses()
        for tokenizer in tokenizers:
            self.seen(tokenizer.facts["processes"])
        self._instance = instance
        self._limits = limits
        self._departed = Departed()
        self._handoffs = handoffs

    def read_from(self, ready_file: Path) -> None:
        """Where the launcher's report will be, which names the processes that are clients."""
        self._others.read_from(ready_file)

    def died(self, name: str, cause: str) -> None:
        """The process ``name`` died, or fell with another, and is being started again."""
        self._roster.died(name, cause)

    def heard(self, replica: Replica, answer: dict[str, Any]) -> None:
        """A scheduler says what it has counted."""
        self._departed.heard(replica.number, answer)

    def departed(self, replica: Replica) -> None:
        """All that the dead scheduler of a replica had sent has been heard."""
        self._departed.died(replica.number)

    def restarted(self, replica: Replica) -> None:
        """A replica's worker is back."""
        self._facts = together(self._replicas)
        self._roster.restarted(replica)

    def seen(self, processes: dict[str, int]) -> None:
        """These processes are there, by name."""
        self._roster.seen(processes)

    @property
    def everyone(self) -> dict[str, int]:
        """Ids of all processes that are there, by name; those beside the topology included."""
        return {FRONT: os.getpid(), **self._roster.processes, **self._others.pids}

    def welcome(self, connection: Connection) -> dict[str, Any]:
        """Fields of a ``welcome``."""
        return {
            "server": "pdv_mp",
            "version": pdv_mp.__version__,
            "instance": self._instance,
            "connection": connection.number,
            "model": self._facts["model"],
            "draft_model": self._facts["draft_model"],
            "topology": self._config.topology,
            "vocab_size": self._facts["vocab_size"],
            "eos_ids": self._facts["eos_ids"],
            "max_model_len": self._facts["max_model_len"],
            "limits": {
                "max_tokens": self._limits.max_tokens,
                "max_prompt_tokens": self._limits.max_prompt_tokens,
                "max_open_requests": self._config.scheduling.max_open_requests,
                "max_message_bytes": self._config.server.max_message_bytes,
            },
        }

    def info(
        self,
        service: Service,
        clients: ClientSocket,
        endpoints: list[str],
        found: EngineInfo,
    ) -> dict[str, Any]:
        """Fields of an ``info``, without what processes use; ``found``: what schedulers say."""
        for answer in found.values():
            self._roster.seen(answer.get("processes", {}))
        service.tokenizers.count_sent()
        engines = merged([*(found[number] for number in sorted(found)), self._departed.counts])
        handoffs = merged([engines.pop("handoffs", {}), self._handoffs.as_dict()])
        processes = self._roster.processes
        counters = {
            **engines.pop("counters", {}),
            "open_requests": len(service.journal.open),
            "waiting_requests": service.journal.num_waiting,
            "untokenized_requests": service.journal.num_untokenized,
            "waiting_texts": service.tokenizers.num_waiting,
            "closing_requests": sum(len(replica.closing) for replica in self._replicas),
            "free_credits": sum(replica.free_credits for replica in self._replicas),
            "restarts": self._roster.restarts,
            "connections": clients.num_connections,
            "finished": dict(service.finished),
            "errors": dict(service.errors),
        }
        return {
            "instance": self._instance,
            "version": pdv_mp.__version__,
            "configuration": self._configuration,
            "facts": {**self._facts, "processes": dict(processes)},
            "topology": self._config.topology,
            "stages": engines.pop("stages", {}),
            "edges": [
                dataclasses.asdict(edge)
                for edge in (
                    *_client_edges(clients, endpoints),
                    *_peer_edges("verify", self._replicas),
                    *_peer_edges("tokenizer", self._tokenizers),
                )
            ],
            "pools": engines.pop("pools", {}),
            "counters": counters,
            "replicas": [
                _replica_fields(replica, found.get(replica.number, {}))
                for replica in self._replicas
            ],
            "tokenizers": [_tokenizer_fields(tokenizer) for tokenizer in self._tokenizers],
            "away": self._roster.away,
            "handoffs": handoff_report(handoffs),
            **engines,
            "processes": {FRONT: os.getpid(), **processes},
            "restarts": dict(self._roster.restarts_of),
            "served": service.statistics.as_dict(),
        }


def _replica_fields(replica: Replica, answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "process": replica.name,
        "serves": replica.serves,
        "restarts": replica.restarts,
        "open_requests": len(replica.running),
        "closing_requests": len(replica.closing),
        "free_credits": replica.free_credits,
        "stages": answer.get("stages", {}),
        "pools": answer.get("pools", {}),
        "counters": answer.get("counters", {}),
        "controller": next(iter(answer.get("speculation", {}).get("controllers", ())), {}),
    }


def _tokenizer_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "process": tokenizer.name,
        "serves": tokenizer.serves,
        "restarts": tokenizer.restarts,
        "texts": tokenizer.num_texts,
        "outstanding_texts": len(tokenizer.texts),
        "outstanding_bytes": tokenizer.outstanding_bytes,
    }


@dataclasses.dataclass(frozen=True, slots=True)
class _Edge:
    name: str
    endpoints: list[str]
    messages: int
    bytes: int


def _client_edges(clients: ClientSocket, endpoints: list[str]) -> Iterator[_Edge]:
    yield _Edge("client>front", endpoints, clients.messages_received, clients.bytes_received)
    yield _Edge("front>client", endpoints, clients.messages_sent, clients.bytes_sent)


def _peer_edges(stage: str, peers: Sequence[Replica] | Sequence[Tokenizer]) -> Iterator[_Edge]:
    """Those to and from all processes of a kind."""
    edges: list[PeerEdge[Any]] = [peer.edge for peer in peers]
    if not edges:
        return
    sockets = [edge.endpoint for edge in edges]
    sent = sum(edge.messages_sent for edge in edges), sum(edge.bytes_sent for edge in edges)
    received = sum(edge.messages_received for edge in edges)
    yield _Edge(f"front>{stage}", sockets, *sent)
    num_bytes = sum(edge.bytes_received for edge in edges)
    yield _Edge(f"{stage}>front", sockets, received, num_bytes)
