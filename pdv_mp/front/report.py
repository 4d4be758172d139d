"""What the front says of itself and of the server: ``welcome`` and ``info``."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pdv_mp
from pdv_mp.config import EngineConfig
from pdv_mp.front.admission import ModelFacts
from pdv_mp.front.connections import ClientSocket
from pdv_mp.front.engine_edge import EngineEdge
from pdv_mp.front.outbox import Connection
from pdv_mp.front.service import Service


class Reporter:
    """Builds ``welcome`` and ``info`` from the facts of the start-up and the present counters."""

    def __init__(
        self, config: EngineConfig, facts: dict[str, Any], instance: str, limits: ModelFacts
    ) -> None:
        self._config = config
        self._facts = facts
        self._instance = instance
        self._limits = limits

    def without(self, name: str) -> None:
        """The process ``name`` died and is being started again."""
        processes = self._facts.get("processes", {})
        others = {other: pid for other, pid in processes.items() if other != name}
        self._facts = {**self._facts, "processes": others}

    def restarted(self, facts: dict[str, Any]) -> None:
        """The worker is back with these facts."""
        self._facts = facts

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
        engine: EngineEdge,
        endpoints: list[str],
        engine_info: dict[str, Any],
    ) -> dict[str, Any]:
        """Fields of an ``info``; ``engine_info`` is the scheduler's part, empty if it is lost."""
        facts = self._facts
        processes = {"front": os.getpid(), **facts.get("processes", {})}
        configuration = json.loads(self._config.to_json())
        counters = {
            **engine_info.get("counters", {}),
            "open_requests": len(service.journal.open),
            "waiting_requests": service.journal.num_waiting,
            "closing_requests": service.journal.num_closing,
            "free_credits": service.journal.credits,
            "restarts": service.restarts,
            "connections": clients.num_connections,
            "finished": dict(service.finished),
            "errors": dict(service.errors),
        }
        others = {
            key: value
            for key, value in engine_info.items()
            if key not in ("counters", "stages", "pools")
        }
        return {
            "instance": self._instance,
            "configuration": configuration,
            "facts": facts,
            "topology": self._config.topology,
            "processes": processes,
            "stages": engine_info.get("stages", {}),
            "edges": [dataclasses.asdict(edge) for edge in _edges(clients, engine, endpoints)],
            "pools": engine_info.get("pools", {}),
            "counters": counters,
            **others,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class _Edge:
    name: str
    endpoints: list[str]
    messages: int
    bytes: int


def _edges(clients: ClientSocket, engine: EngineEdge, endpoints: list[str]) -> list[_Edge]:
    return [
        _Edge("client>front", endpoints, clients.messages_received, clients.bytes_received),
        _Edge("front>client", endpoints, clients.messages_sent, clients.bytes_sent),
        _Edge("front>verify", [engine.endpoint], engine.messages_sent, engine.bytes_sent),
        _Edge("verify>front", [engine.endpoint], engine.messages_received, engine.bytes_received),
    ]
