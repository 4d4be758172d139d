"""The process around a lane: its edge to the scheduler's worker, and its loop."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import zmq

from pdv_mp.config import EngineConfig
from pdv_mp.control import ControlClient
from pdv_mp.lanes.device_lock import Lock, device_lock
from pdv_mp.lanes.edge import LaneEdge
from pdv_mp.lanes.injected_delay import delay_of, parse_delays
from pdv_mp.lanes.lane import DraftLane, Lane, PrefillLane
from pdv_mp.lanes.waiting import Waiting
from pdv_mp.resources.kv_handoff import KVReceiver, make_sender
from pdv_mp.resources.resources import Resources, attach_resources
from pdv_mp.stages.draft import DraftStage
from pdv_mp.stages.prefill import PrefillStage
from pdv_mp.topology import topology_of
from pdv_mp.wire import control as control_wire
from pdv_mp.wire import stages as wire
from pdv_mp.workers.device import use_device
from pdv_mp.workers.flight_record import FlightRecord, record_path
from pdv_mp.workers.product_check import check_products
from pdv_mp.workers.threads import set_threads


def run_lane(
    config: EngineConfig,
    name: str,
    run_dir: Path,
    control: ControlClient,
    generations: Mapping[str, int],
) -> None:
    """Serve as the lane ``name`` until the supervisor says stop.

    Raises ConfigError or ModelError when the configuration cannot be served.
    """
    set_threads(config, name)
    check_products(use_device(config, name))
    resources = attach_resources(config, run_dir, name, control, _unexpected)
    if resources is None:
        return
    lock = device_lock(config, run_dir)
    lane = _make_lane(config, name, resources, lock)
    record = FlightRecord(record_path(run_dir, name, generations[name]), resources.num_slots)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    (stage,) = topology_of(config).place(name)[0].stages
    held = delay_of(parse_delays(config.handoff.inject_delay), f"verify>{stage}")
    edge = LaneEdge(context, run_dir, name, generations[name], bind=False, held=held)
    waiting = Waiting(config.handoff)
    try:
        facts = {"fingerprint": config.fingerprint, "processes": {name: os.getpid()}}
        edge.send(wire.LaneReady(facts=facts))
        control.send(control_wire.Ready(name=name, facts=facts))
        _serve(lane, edge, control, record, waiting)
    finally:
        lane.close()
        waiting.close()
        edge.close()
        lock.close()
        resources.close()
        context.term()
        record.close()


def _unexpected(order: control_wire.SupervisorMessage) -> None:
    raise control_wire.ControlError(f"a lane cannot obey a {type(order).__name__} message")


def _make_lane(config: EngineConfig, name: str, resources: Resources, lock: Lock) -> Lane:
    worker, _ = topology_of(config).place(name)
    if worker.stages == ("prefill",):
        stage = PrefillStage(
            resources.prefill_target,
            resources.prefill_draft,
            resources.num_slots,
            resources.max_model_len,
            resources.sampler,
        )
        chunk = config.scheduling.max_num_batched_tokens
        sender = make_sender(resources.plan, resources.caches, resources.num_blocks)
        return PrefillLane(stage, chunk, resources.num_slots, lock, sender)
    if worker.stages == ("draft",) and resources.draft is not None:
        rule = resources.rule(config)
        receiver = KVReceiver(resources.caches, resources.num_blocks)
        drafts = DraftStage(resources.draft, rule, resources.num_slots)
        return DraftLane(drafts, lock, receiver, config.handoff.draft_ahead)
    raise RuntimeError(f"{name} hosts {worker.stages}, which no lane can")


def _serve(
    lane: Lane, edge: LaneEdge, control: ControlClient, record: FlightRecord, waiting: Waiting
) -> None:
    waiting.register(edge.socket)
    waiting.register(control.socket)
    ready = waiting.ready()
    while True:
        while control.socket in ready and (order := control.receive()) is not None:
            if isinstance(order, control_wire.Stop):
                return
        while edge.may_have(ready) and (message := edge.receive()) is not None:
            for answer in lane.take(message):
                edge.send(answer)
            ready = waiting.ready()
        result = lane.step(record.enter)
        if result is not None:
            edge.send(result, time.monotonic_ns())
        if result is not None or lane.run_ahead():
            ready = waiting.ready()
        else:
            record.leave()
            ready = waiting.wait(edge.due_ns)
