"""What the schedulers' workers decided when they started, and what of it must be the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import zmq

from pdv_mp.config import EngineConfig
from pdv_mp.control import ControlClient
from pdv_mp.front.peer_edge import PeerEdge
from pdv_mp.front.replicas import Replica
from pdv_mp.front.tokenizers import Tokenizer
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import engine as wire
from pdv_mp.wire.tokenize import TokenizerReady

Facts = dict[str, Any]
"""The facts of :class:`pdv_mp.wire.engine.EngineReady`."""

FREE_FACTS = ("processes", "kv_blocks", "max_request_tokens")
"""What each worker may decide for itself, also after a restart; a restarted one may only give a
request more room."""

SUMMED_FACTS = ("credits", "kv_blocks")


class FrontError(RuntimeError):
    """The front cannot start or go on; the message says why and what to do."""


def wait_for_engines(
    config: EngineConfig, control: ControlClient, replicas: Sequence[Replica]
) -> Facts | None:
    """Wait until all replicas are ready. Returns the facts of them together, or None if the
    supervisor stops the start. Raises FrontError if a worker has another configuration than the
    front, or another replica's worker decided otherwise."""

    def heard(number: int, message: Any) -> None:
        replica = replicas[number]
        if not isinstance(message, wire.EngineReady):
            raise FrontError(f"{replica.name} sent {type(message).__name__} before it was ready")
        _check_first(config, replicas, replica, message.facts)
        replica.started(message.facts)

    if not _hear_from_all(control, [replica.edge for replica in replicas], heard):
        return None
    return together(replicas)


def wait_for_tokenizers(
    config: EngineConfig, control: ControlClient, tokenizers: Sequence[Tokenizer]
) -> bool:
    """Wait until all tokenizers are ready; False if the supervisor stops the start. Raises
    FrontError if one has another configuration than the front."""

    def heard(number: int, message: Any) -> None:
        tokenizer = tokenizers[number]
        if not isinstance(message, TokenizerReady):
            raise FrontError(f"{tokenizer.name} sent {type(message).__name__} before it was ready")
        check_tokenizer(config, tokenizer, message.facts)
        tokenizer.started(message.facts)

    return _hear_from_all(control, [tokenizer.edge for tokenizer in tokenizers], heard)


def _hear_from_all(
    control: ControlClient, edges: Sequence[PeerEdge[Any]], heard: Callable[[int, Any], None]
) -> bool:
    """Call ``heard`` with the number and the first message of each edge. False if the supervisor
    stops the start."""
    poller = zmq.Poller()
    poller.register(control.socket, zmq.POLLIN)
    for edge in edges:
        poller.register(edge.socket, zmq.POLLIN)
    missing = dict(enumerate(edges))
    while missing:
        poller.poll(_milliseconds_to_due(missing.values()))
        while (order := control.receive()) is not None:
            if isinstance(order, control_wire.Stop):
                return False
            if isinstance(order, (control_wire.Drain, control_wire.Abort, control_wire.Lost)):
                control.send(control_wire.Drained())
        for number, edge in list(missing.items()):
            message = edge.receive()
            if message is not None:
                heard(number, message)
                poller.unregister(edge.socket)
                del missing[number]
    return True


def _milliseconds_to_due(edges: Iterable[PeerEdge[Any]]) -> int | None:
    """Until the first frame that is held back may be seen; None if there is none."""
    due = [edge.due_ns for edge in edges if edge.due_ns is not None]
    return max(0, (min(due) - time.monotonic_ns()) // 1_000_000 + 1) if due else None


def _check_first(
    config: EngineConfig, replicas: Sequence[Replica], replica: Replica, facts: Facts
) -> None:
    if facts["fingerprint"] != config.fingerprint:
        raise FrontError(f"{replica.name} was started with another configuration than the front")
    for other in replicas:
        if other.facts and (changed := _differences(other.facts, facts)):
            raise FrontError(
                f"{replica.name} is not as {other.name}, though they are replicas of each other: "
                f"{'; '.join(changed)}"
            )


def check_tokenizer(config: EngineConfig, tokenizer: Tokenizer, facts: Facts) -> None:
    """Raises FrontError if a tokenizer was started with another configuration than the front."""
    if facts["fingerprint"] != config.fingerprint:
        raise FrontError(f"{tokenizer.name} was started with another configuration than the front")


def check_restarted(first: Facts, replica: Replica, facts: Facts) -> None:
    """Raises FrontError if open requests cannot go on in a worker that was started again.
    ``first``: what :func:`wait_for_engines` returned."""
    changed = _differences(replica.facts, facts)
    least, room = first["max_request_tokens"], facts["max_request_tokens"]
    if room < least:
        changed.append(f"max_request_tokens was {least} and is {room}")
    if changed:
        raise FrontError(f"{replica.name} came back as another one: {'; '.join(changed)}")


def _differences(before: Facts, after: Facts) -> list[str]:
    return [
        f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if name not in FREE_FACTS and before.get(name) != after.get(name)
    ]


def together(replicas: Sequence[Replica]) -> Facts:
    """The facts of all replicas: what they have in common, the sums of what each has its own of,
    and the room that each of them has for a request."""
    all_facts = [replica.facts for replica in replicas]
    facts = dict(all_facts[0])
    for name in SUMMED_FACTS:
        if name in facts:
            facts[name] = sum(item[name] for item in all_facts)
    facts["max_request_tokens"] = min(item["max_request_tokens"] for item in all_facts)
    facts["processes"] = {
        name: pid for item in all_facts for name, pid in item.get("processes", {}).items()
    }
    return facts
