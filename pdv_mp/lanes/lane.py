"""The loops of lanes without their sockets: a stage, its inbox, and the stamps of its batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from pdv_mp.lanes.device_lock import Lock, NoLock
from pdv_mp.lanes.stamps import BatchStamps
from pdv_mp.stages.draft import DraftStage
from pdv_mp.stages.prefill import PrefillStage
from pdv_mp.wire import stages as wire
from pdv_mp.wire.frames import Stamps, WireError

BeforeBatch = Callable[[list[int]], None]
"""Called with the slots of a batch before it runs."""


class Lane(Protocol):
    """What a lane process runs."""

    def take(self, message: wire.StageMessage) -> list[wire.StageMessage]:
        """Put a message of the scheduler's into the inbox; answers that can be given at once.

        Raises WireError for a message that this lane cannot handle.
        """

    def step(self, before: BeforeBatch) -> wire.StageMessage | None:
        """Run one batch and return its result, or None if there is nothing to do."""


class PrefillLane:
    """Prompts in chunks of at most ``max_tokens``, first come first served."""

    def __init__(
        self, stage: PrefillStage, max_tokens: int, num_slots: int, lock: Lock | None = None
    ) -> None:
        self._stage = stage
        self._lock = lock or NoLock()
        self._max_tokens = max_tokens
        self._orders = np.zeros((num_slots, 4), np.int64)
        self._waiting_since = np.zeros(num_slots, np.int64)
        self._busy_ns = 0

    def take(self, message: wire.StageMessage) -> list[wire.StageMessage]:
        if isinstance(message, wire.PrefillWork):
            stamps, slots = message.stamps, message.order.slots
            self._stage.put(message.order)
            self._orders[slots] = (
                stamps.encode_ns,
                stamps.sent_ns,
                stamps.received_ns,
                stamps.decoded_ns,
            )
            self._waiting_since[slots] = self._busy_ns
            return []
        if isinstance(message, wire.Withdraw):
            kept = [slot for slot in message.slots.tolist() if self._stage.withdraw(slot)]
            return [wire.Withdrawn(slots=np.array(kept, np.int64))] if kept else []
        raise WireError(f"a prefill lane cannot handle a {type(message).__name__} message")

    def step(self, before: BeforeBatch) -> wire.PrefillResult | None:
        if not self._stage.inbox:
            return None
        asked = time.monotonic_ns()
        with self._lock:
            return self._step(before, asked)

    def _step(self, before: BeforeBatch, asked: int) -> wire.PrefillResult | None:
        picked = time.monotonic_ns()
        if self._lock.exclusive:
            self._busy_ns += picked - asked
        batch = self._stage.form(self._max_tokens)
        if batch is None:
            return None
        before(batch.slots.tolist())
        started = time.monotonic_ns()
        result = self._stage.run(batch)
        stamps = BatchStamps(picked, started, time.monotonic_ns())
        message = wire.PrefillResult(
            result=result,
            batch=stamps,
            orders=self._orders[batch.slots],
            busy_ns=self._busy_ns - self._waiting_since[batch.slots],
        )
        self._busy_ns += stamps.ended_ns - stamps.picked_ns
        self._orders[batch.slots] = 0
        self._waiting_since[batch.slots] = self._busy_ns
        return message


class DraftLane:
    """Orders one after the other; each group of requests has at most one here."""

    def __init__(self, stage: DraftStage, lock: Lock | None = None) -> None:
        self._stage = stage
        self._lock = lock or NoLock()
        self._orders: deque[Stamps] = deque()

    def take(self, message: wire.StageMessage) -> list[wire.StageMessage]:
        if not isinstance(message, wire.DraftWork):
            raise WireError(f"a draft lane cannot handle a {type(message).__name__} message")
        self._stage.put(message.order)
        self._orders.append(message.stamps)
        return []

    def step(self, before: BeforeBatch) -> wire.DraftResult | None:
        if not self._stage.inbox:
            return None
        asked = time.monotonic_ns()
        with self._lock:
            return self._step(before, asked)

    def _step(self, before: BeforeBatch, asked: int) -> wire.DraftResult | None:
        picked = time.monotonic_ns()
        order = self._stage.form()
        if order is None:
            return None
        before(order.slots.tolist())
        started = time.monotonic_ns()
        proposal = self._stage.run(order)
        return wire.DraftResult(
            cycle=order.cycle,
            proposal=proposal,
            batch=BatchStamps(picked, started, time.monotonic_ns()),
            order=self._orders.popleft(),
            busy_ns=picked - asked if self._lock.exclusive else 0,
        )
