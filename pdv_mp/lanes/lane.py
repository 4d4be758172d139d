"""The loops of lanes without their sockets: a stage, its inbox, and the stamps of its batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from pdv_mp.lanes.device_lock import Lock, NoLock
from pdv_mp.lanes.stamps import BatchStamps
from pdv_mp.resources.kv_handoff import KVReceiver, KVSender
from pdv_mp.stages.draft import DraftStage
from pdv_mp.stages.kv_rows import KVRows
from pdv_mp.stages.messages import Prefilled, without_drafts
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

    def run_ahead(self) -> bool:
        """Do a little of what may be asked for next; False if there is nothing to guess."""

    def close(self) -> None:
        """The process is about to end."""


class PrefillLane:
    """Prompts in chunks of at most ``max_tokens``, first come first served."""

    def __init__(
        self,
        stage: PrefillStage,
        max_tokens: int,
        num_slots: int,
        lock: Lock | None = None,
        sender: KVSender | None = None,
    ) -> None:
        """``sender``: what hands on the KV of finished prompts, where caches are private."""
        self._stage = stage
        self._sender = sender
        self._lengths = np.zeros(num_slots, np.int64)
        self._fills_draft = np.zeros(num_slots, np.bool_)
        self._lock = lock or NoLock()
        self._max_tokens = max_tokens
        self._orders = np.zeros((num_slots, 4), np.int64)
        self._waiting_since = np.zeros(num_slots, np.int64)
        self._busy_ns = 0

    def take(self, message: wire.StageMessage) -> list[wire.StageMessage]:
        if isinstance(message, wire.PrefillWork):
            stamps, slots = message.stamps, message.order.slots
            self._stage.put(message.order)
            self._lengths[slots] = message.order.lengths
            self._fills_draft[slots] = message.order.fills_draft
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
            if self._sender is not None:
                self._sender.withdraw(message.slots.tolist())
            return [wire.Withdrawn(slots=np.array(kept, np.int64))] if kept else []
        if isinstance(message, wire.Release) and self._sender is not None:
            self._sender.release(message.numbers.tolist())
            return []
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
            rows=self._rows(result),
        )
        self._busy_ns += stamps.ended_ns - stamps.picked_ns
        self._orders[batch.slots] = 0
        self._waiting_since[batch.slots] = self._busy_ns
        return message

    def _rows(self, result: Prefilled) -> list[KVRows]:
        """The KV of the prompts that are complete."""
        sender, rows = self._sender, []
        if sender is not None:
            for slot in result.slots.tolist():
                tokens, with_draft = int(self._lengths[slot]), bool(self._fills_draft[slot])
                rows += sender.pack(slot, tokens, with_draft)
        return rows

    def run_ahead(self) -> bool:
        return False

    def close(self) -> None:
        """Free what has been handed on and not been released."""
        if self._sender is not None:
            self._sender.close()


class DraftLane:
    """Orders one after the other; each group of requests has at most one here."""

    def __init__(
        self,
        stage: DraftStage,
        lock: Lock | None = None,
        receiver: KVReceiver | None = None,
        ahead: bool = False,
    ) -> None:
        """``receiver``: what takes over the KV that comes with orders, where caches are private.
        ``ahead``: go on while proposals are judged."""
        self._stage = stage
        self._ahead = ahead
        self._counted = (0, 0)
        self._receiver = receiver
        self._lock = lock or NoLock()
        self._orders: deque[tuple[Stamps, list[int]]] = deque()

    def take(self, message: wire.StageMessage) -> list[wire.StageMessage]:
        if isinstance(message, wire.Halt):
            self._stage.halt()
            return [wire.Halted()]
        if not isinstance(message, wire.DraftWork):
            raise WireError(f"a draft lane cannot handle a {type(message).__name__} message")
        lost = []
        if message.rows and self._receiver is not None:
            lost = [rows.slot for rows in message.rows if not self._receiver.take(rows)]
            message.stamps.decoded_ns = time.monotonic_ns()  # taking rows over is decoding
        self._stage.put(message.order)
        self._orders.append((message.stamps, lost))
        return []

    def run_ahead(self) -> bool:
        if self._stage.inbox:
            return False
        with self._lock:
            return self._stage.run_ahead()

    def close(self) -> None:
        """Nothing outlives the process."""

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
        stamps, lost = self._orders.popleft()
        before(order.slots.tolist())
        started = time.monotonic_ns()
        if lost:
            self._stage.halt()  # what it guessed ahead may be of slots that have ended
        proposal = without_drafts(order) if lost else self._stage.run(order)
        ended = time.monotonic_ns()
        drafts, hits = self._stage.ahead_drafts, self._stage.ahead_hits
        new_drafts, new_hits = drafts - self._counted[0], hits - self._counted[1]
        self._counted = (drafts, hits)
        if self._ahead and not lost:
            self._stage.begin_ahead(proposal)
        return wire.DraftResult(
            cycle=order.cycle,
            proposal=proposal,
            batch=BatchStamps(picked, started, ended),
            order=stamps,
            ahead_drafts=new_drafts,
            ahead_hits=new_hits,
            busy_ns=picked - asked if self._lock.exclusive else 0,
            lost=np.array(lost, np.int64),
        )
