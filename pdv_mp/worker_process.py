"""The process around a :class:`~pdv_mp.worker.Worker`: its edge to the front, and its loop."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import torch
import zmq

from pdv_mp.config import EngineConfig
from pdv_mp.control import ControlClient
from pdv_mp.flight_record import FlightRecord, record_path
from pdv_mp.resources import build_resources
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import engine as wire
from pdv_mp.worker import Worker

logger = logging.getLogger(__name__)


class FrontEdge:
    """The worker's end of its edge to the front; it owns the socket.

    Sends never block: the queue is unbounded, and what can wait in it is bounded by the credits
    that the front has been given.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], run_dir: Path, generation: int):
        self.socket = context.socket(zmq.PAIR)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"ipc://{run_dir / wire.engine_socket(generation)}")
        self._generation = generation

    def send(self, message: wire.EngineMessage, encode_ns: int | None = None) -> None:
        """Encode a message and hand it to the socket."""
        self.socket.send(wire.encode(message, self._generation, encode_ns), zmq.NOBLOCK)

    def receive(self) -> wire.EngineMessage | None:
        """The next message that has arrived, or None. Raises WireError for a damaged one."""
        while True:
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            message, generation = wire.decode(frame, time.monotonic_ns())
            if generation == self._generation:
                return message
            logger.warning("dropped a message of generation %d", generation)

    def close(self) -> None:
        """Close the socket; what has not been sent is dropped."""
        self.socket.close()


def run_worker(
    config: EngineConfig, name: str, run_dir: Path, control: ControlClient, generation: int
) -> None:
    """Serve as the worker ``name`` until the supervisor says stop.

    Raises ConfigError or ModelError when the configuration cannot be served.
    """
    torch.set_num_threads(config.model.threads or len(os.sched_getaffinity(0)))
    resources = build_resources(config)
    record = FlightRecord(record_path(run_dir, name, generation), resources.num_slots)
    worker = Worker(resources, config, record)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    edge = FrontEdge(context, run_dir, generation)
    try:
        facts = {**resources.facts(config), "processes": {name: os.getpid()}}
        edge.send(wire.EngineReady(facts=facts))
        control.send(control_wire.Ready(name=name, facts=facts))
        _serve(worker, edge, control, record)
    finally:
        edge.close()
        context.term()
        record.close()


def _serve(worker: Worker, edge: FrontEdge, control: ControlClient, record: FlightRecord) -> None:
    poller = zmq.Poller()
    poller.register(edge.socket, zmq.POLLIN)
    poller.register(control.socket, zmq.POLLIN)
    while True:
        while (order := control.receive()) is not None:
            if isinstance(order, control_wire.Stop):
                return
        while (message := edge.receive()) is not None:
            _handle(worker, edge, message, record)
        busy = worker.step()
        if worker.scheduler.has_emissions:
            encode_ns = time.monotonic_ns()
            for message in worker.emissions(encode_ns):
                edge.send(message, encode_ns)
        if not busy:
            record.leave()
            poller.poll()


def _handle(
    worker: Worker, edge: FrontEdge, message: wire.EngineMessage, record: FlightRecord
) -> None:
    if isinstance(message, wire.Open):
        record.enter((message.request,))
        worker.scheduler.submit(message)
    elif isinstance(message, wire.Close):
        worker.close(message.requests.tolist())
    elif isinstance(message, wire.InfoRequest):
        edge.send(wire.InfoReply(number=message.number, info=worker.info()))
    else:
        raise wire.WireError(f"a worker cannot handle a {type(message).__name__} message")
