"""The process around a :class:`~pdv_mp.workers.worker.Worker`: its edges to the front and to its
lanes, and its loop."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import zmq

from pdv_mp.config import EngineConfig
from pdv_mp.control import ControlClient
from pdv_mp.lanes.device_lock import device_lock
from pdv_mp.lanes.edge import LaneEdge
from pdv_mp.lanes.injected_delay import delay_of, parse_delays
from pdv_mp.lanes.waiting import Waiting
from pdv_mp.resources.resources import attach_resources, build_resources
from pdv_mp.topology import POOLS, topology_of
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import engine as wire
from pdv_mp.workers.device import use_device
from pdv_mp.workers.flight_record import FlightRecord, record_path, take_record
from pdv_mp.workers.front_edge import FrontEdge
from pdv_mp.workers.product_check import check_products
from pdv_mp.workers.rehearsal import rehearse
from pdv_mp.workers.threads import set_threads
from pdv_mp.workers.trace import open_trace
from pdv_mp.workers.worker import Worker


def run_worker(
    config: EngineConfig,
    name: str,
    run_dir: Path,
    control: ControlClient,
    generations: Mapping[str, int],
) -> None:
    """Serve as the scheduler's worker ``name`` until the supervisor says stop.

    Raises ConfigError or ModelError when the configuration cannot be served.
    """
    set_threads(config, name)
    check_products(use_device(config, name))
    topology = topology_of(config)
    _, replica = topology.place(name)
    early: list[control_wire.SupervisorMessage] = []
    if topology.has_pools:
        resources = attach_resources(config, run_dir, name, control, early.append)
    else:
        resources = build_resources(config, progress=control.progress)
    if resources is None:
        return
    generation = generations[name]
    record = FlightRecord(record_path(run_dir, name, generation), resources.num_slots)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    delays = parse_delays(config.handoff.inject_delay)
    lanes = {
        stage: LaneEdge(
            context,
            run_dir,
            lane,
            generations[lane],
            bind=True,
            held=delay_of(delays, f"{stage}>verify"),
        )
        for stage, lane in topology.lanes(replica).items()
    }
    lock = device_lock(config, run_dir)
    send = {stage: edge.send for stage, edge in lanes.items()}
    # One that is started again is waited for.
    rehearsed = None if generation else rehearse(resources, config)
    worker = Worker(resources, config, record, send, lock, rehearsed)
    trace = open_trace(config, run_dir, name, generation)
    if trace is not None:
        worker.trace_to(trace)
    edge = FrontEdge(context, run_dir, generation, replica, delay_of(delays, "front>verify"))
    waiting = Waiting(config.handoff)
    worker.processes[name] = os.getpid()
    if resources.pools_pid is not None:
        worker.processes[POOLS] = resources.pools_pid
    try:
        facts = {**resources.facts(config), "processes": {name: os.getpid()}}
        edge.start()
        edge.send(wire.EngineReady(facts=facts))
        control.send(control_wire.Ready(name=name, facts=facts))
        process = WorkerProcess(worker, edge, lanes, control, record, run_dir, generations, waiting)
        for order in early:
            process.obey(order)
        process.serve()
    finally:
        edge.close()
        waiting.close()
        lock.close()
        resources.close()
        for lane in lanes.values():
            lane.close()
        context.term()
        record.close()
        if trace is not None:
            trace.close()


class WorkerProcess:
    """The sockets of a scheduler's worker and the loop over them."""

    def __init__(
        self,
        worker: Worker,
        front: FrontEdge,
        lanes: Mapping[str, LaneEdge],
        control: ControlClient,
        record: FlightRecord,
        run_dir: Path,
        generations: Mapping[str, int],
        waiting: Waiting,
    ) -> None:
        self._worker = worker
        self._front = front
        self._lanes = lanes
        self._control = control
        self._record = record
        self._run_dir = run_dir
        self._generations = dict(generations)
        self._waiting = waiting
        for lane in lanes.values():
            waiting.register(lane.socket)
        waiting.register(control.socket)
        waiting.register(front.fd)

    def serve(self) -> None:
        """Messages first, then a batch, then what it emitted; until the supervisor says stop."""
        worker, control, front = self._worker, self._control, self._front
        ready = self._waiting.ready()
        while True:
            while control.socket in ready and (order := control.receive()) is not None:
                if isinstance(order, control_wire.Stop):
                    return
                self.obey(order)
            if front.fd in ready:
                front.noticed()
            while (message := front.receive()) is not None:
                self._handle(message)
            for stage, lane in self._lanes.items():
                while lane.may_have(ready) and (result := lane.receive()) is not None:
                    worker.take(stage, result)
                    ready = self._waiting.ready()
            busy = worker.step()
            encode_ns = time.monotonic_ns()
            scheduler = worker.scheduler
            if scheduler.owes_emissions(encode_ns) if busy else scheduler.has_emissions:
                worker.handoffs.follows("verify>front", encode_ns)
                for emission in worker.emissions(encode_ns):
                    front.send(emission, encode_ns)
                    encode_ns = time.monotonic_ns()
            if busy:
                ready = self._waiting.ready()
            else:
                worker.handoffs.paused()
                self._record.leave()
                ready = self._waiting.wait(self._due_ns())

    def _due_ns(self) -> int | None:
        return min(filter(None, (lane.due_ns for lane in self._lanes.values())), default=None)

    def obey(self, order: control_wire.SupervisorMessage) -> None:
        """Do what the supervisor says, Stop excepted."""
        if isinstance(order, control_wire.Restarting):
            self._lane_died(order)

    def _lane_died(self, order: control_wire.Restarting) -> None:
        """Take what a dead lane had still sent, then wait for its next generation."""
        for stage, lane in self._lanes.items():
            if lane.lane != order.name:
                continue
            while (result := lane.receive()) is not None:
                self._worker.take(stage, result)
            self._waiting.unregister(lane.socket)
            path = record_path(self._run_dir, lane.lane, self._generations[lane.lane])
            self._generations[lane.lane] = order.generation
            lane.reopen(order.generation)
            self._waiting.register(lane.socket)
            self._worker.lane_died(stage, take_record(path))

    def _handle(self, message: wire.EngineMessage) -> None:
        worker = self._worker
        if isinstance(message, (wire.Open, wire.Close)):
            worker.handoffs.received("front>verify", message.stamps, beside=True)
        if isinstance(message, wire.Open):
            self._record.enter((message.request,))
            worker.open(message)
        elif isinstance(message, wire.Close):
            worker.close(message.requests.tolist())
        elif isinstance(message, wire.InfoRequest):
            for stage, lane in self._lanes.items():
                worker.handoffs.sent(f"verify>{stage}", lane.messages_sent, lane.bytes_sent)
            self._front.send(
                wire.InfoReply(number=message.number, info=worker.info(message.batches))
            )
        else:
            raise wire.WireError(f"a worker cannot handle a {type(message).__name__} message")
