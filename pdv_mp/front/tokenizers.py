"""The processes that tokenize, as the front sees them, and the texts that wait for them.

A text is *waiting* here, or *outstanding* at one tokenizer, which answers it once. When a tokenizer
dies, what was outstanding there waits again, ahead of what came later, and goes to whichever has
room first.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from pdv_mp.front.journal import Request
from pdv_mp.front.outbox import Connection
from pdv_mp.front.peer_edge import PeerEdge
from pdv_mp.front.quarantine import CONDEMNED_AT
from pdv_mp.lanes.injected_delay import HeldFrames
from pdv_mp.timeline import Timeline, state_index
from pdv_mp.wire import tokenize as wire
from pdv_mp.wire.client_messages import Generate
from pdv_mp.wire.frames import BatchStamps, Stamps, WireError
from pdv_mp.workers.handoffs import Handoffs

MAX_OUTSTANDING_BYTES = 256 * 1024
"""Most text at a tokenizer, or one text that is longer: some tenths of a second of work."""

BYTES_PER_TEXT = 64
"""What a text counts besides its own bytes."""

_QUEUE = state_index("front.queue")
_RESTART = state_index("front.restart")
_INBOX = state_index("front.inbox")
_TO = [state_index(f"front>tokenizer.{what}") for what in ("encode", "wire", "decode")]
_HERE = [
    state_index(f"tokenizer.{what}") for what in ("inbox", "busy", "batch", "compute", "publish")
]
_BACK = [state_index(f"tokenizer>front.{what}") for what in ("encode", "wire", "decode")]
_COMPUTE = _HERE[3]


@dataclass(slots=True, eq=False, kw_only=True)
class Text:
    """A text whose ids are wanted.

    ``bare``: without what the tokenizer's template adds. ``request`` and ``message``: the request
    whose prompt it is, and what asked for it; None for a client's ``tokenize``, whose ``id`` is
    answered. ``deaths``: of processes while they worked on
    it. ``settled``: it needs no answer any more, or has had it.
    """

    key: int
    connection: Connection
    id: str
    data: bytes
    bare: bool = False
    request: Request | None = None
    message: Generate | None = None
    sent_ns: int = 0
    deaths: int = 0
    settled: bool = False

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        gone = self.connection.gone if self.request is None else self.request.ended
        return gone or self.settled

    @property
    def size(self) -> int:
        """What it counts at a tokenizer, in bytes."""
        return len(self.data) + BYTES_PER_TEXT

    @property
    def timeline(self) -> Timeline | None:
        """That of its request."""
        return None if self.request is None else self.request.timeline


class TokenizerEdge(PeerEdge[wire.TokenizerMessage]):
    """The edge to the tokenizer ``peer``."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run_dir: Path,
        generation: int,
        peer: str,
        held: HeldFrames | None = None,
    ) -> None:
        name = partial(wire.tokenizer_socket, peer)
        super().__init__(context, run_dir, generation, peer, wire.CODEC, name, held)


class Tokenizer:
    """One process that tokenizes. ``texts``: those outstanding there, by key. ``num_texts``: those
    that it has answered. ``facts``: of its latest start."""

    def __init__(self, number: int, name: str, edge: TokenizerEdge) -> None:
        self.number = number
        self.name = name
        self.edge = edge
        self.texts: dict[int, Text] = {}
        self.outstanding_bytes = 0
        self.num_texts = 0
        self.last_order_ns = 0
        self.restarting = False
        self.restarts = 0
        self.facts: dict[str, Any] = {}

    def started(self, facts: dict[str, Any]) -> None:
        """Its process is ready, with these facts."""
        self.facts = facts
        self.restarting = False

    @property
    def serves(self) -> bool:
        """Whether its process is there."""
        return not self.restarting and not self.edge.lost

    def takes(self, text: Text) -> bool:
        """Whether there is room for a text."""
        fits = self.outstanding_bytes + text.size <= MAX_OUTSTANDING_BYTES
        return self.serves and (fits or not self.texts)

    def put(self, text: Text) -> None:
        """A text is sent there."""
        self.texts[text.key] = text
        self.outstanding_bytes += text.size

    def answered(self, key: int) -> Text:
        """A text has been answered. Raises WireError if it was not there."""
        if key not in self.texts:
            raise WireError(f"{self.name} answers {key}, which it was not asked")
        text = self.texts.pop(key)
        self.outstanding_bytes -= text.size
        self.num_texts += 1
        return text

    def died(self) -> list[Text]:
        """Its process died and is being replaced. Returns what was there."""
        texts = list(self.texts.values())
        self.texts.clear()
        self.outstanding_bytes = 0
        self.restarting = True
        self.restarts += 1
        return texts


class Tokenizers:
    """All tokenizers of the server, perhaps none, and the texts that wait for one.

    ``on_ids`` is called with a text and its ids, ``on_failed`` with one that has none, the reason,
    and whether it may be tried again. Neither is called for a text that is over.
    ``num_questions``: texts without a request that are not settled.
    """

    def __init__(
        self,
        processes: Sequence[Tokenizer],
        handoffs: Handoffs,
        on_ids: Callable[[Text, list[int]], None],
        on_failed: Callable[[Text, str, bool | None], None],
    ) -> None:
        self.processes = processes
        self.waiting_bytes = 0
        self.num_questions = 0
        self._handoffs = handoffs
        self._on_ids = on_ids
        self._on_failed = on_failed
        self._waiting: OrderedDict[int, Text] = OrderedDict()
        self._new: list[Text] = []
        self._next_key = 1

    @property
    def num_waiting(self) -> int:
        """Texts that wait here for a tokenizer."""
        return len(self._waiting)

    def new_key(self) -> int:
        """A key that no text of this process has had."""
        key = self._next_key
        self._next_key += 1
        return key

    def add(self, text: Text) -> None:
        """A text is to be tokenized; it leaves at the end of this turn, if there is room."""
        self._wait(text)
        self._new.append(text)
        if text.request is None:
            self.num_questions += 1
            text.connection.questions += 1

    def settle(self, text: Text) -> None:
        """A text has had its answer, or needs none."""
        if text.request is None and not text.settled:
            self.num_questions -= 1
            text.connection.questions -= 1
        text.settled = True

    def _wait(self, text: Text) -> None:
        self._waiting[text.key] = text
        self.waiting_bytes += text.size

    def _drop(self, text: Text) -> None:
        del self._waiting[text.key]
        self.waiting_bytes -= text.size

    @property
    def _waiting_state(self) -> int:
        return _QUEUE if any(process.serves for process in self.processes) else _RESTART

    def send(self) -> None:
        """Send what waits and has room, one message to each tokenizer."""
        parcels: dict[Tokenizer, list[Text]] = {}
        while self._waiting:
            text = next(iter(self._waiting.values()))
            if text.over:
                self._drop(text)
                self.settle(text)
                continue
            candidates = [process for process in self.processes if process.takes(text)]
            if not candidates:
                break
            process = min(candidates, key=lambda candidate: len(candidate.texts))
            self._drop(text)
            process.put(text)
            parcels.setdefault(process, []).append(text)
        for process, texts in parcels.items():
            self._send(process, texts)
        if self._new:
            now, state = time.monotonic_ns(), self._waiting_state
            for text in self._new:
                if text.key in self._waiting and text.timeline is not None:
                    text.timeline.enter(state, now)
            self._new.clear()

    def _send(self, process: Tokenizer, texts: list[Text]) -> None:
        now = time.monotonic_ns()
        for text in texts:
            text.sent_ns = now
            if text.timeline is not None:
                text.timeline.enter(_TO[0], now)
        message = wire.Texts.of(
            (text.key for text in texts),
            [text.data for text in texts],
            [text.bare for text in texts],
        )
        process.edge.send(message, now)

    def take(self, process: Tokenizer, message: wire.Ids) -> None:
        """A tokenizer has answered. Raises WireError for an answer to what it was not asked."""
        batch = message.batch
        counts, ids = message.counts.tolist(), message.ids.tolist()
        busy, orders = message.busy_ns.tolist(), message.orders.tolist()
        self._handoffs.received("tokenizer>front", message.stamps, process.number)
        self._handoffs["tokenizer>front"].publishes.add(message.stamps.encode_ns - batch.ended_ns)
        start = 0
        for index, key in enumerate(message.keys.tolist()):
            text = process.answered(key)
            end = start + max(counts[index], 0)
            order = Stamps(*orders[index])
            self._picked(process, order, batch, busy[index])
            over = text.over
            self.settle(text)
            if not over:
                if text.timeline is not None:
                    _account(text.timeline, order, batch, busy[index], message.stamps)
                if counts[index] == wire.FAILED:
                    self._on_failed(text, "the prompt could not be tokenized", None)
                else:
                    self._on_ids(text, ids[start:end])
            start = end

    def _picked(self, process: Tokenizer, order: Stamps, batch: BatchStamps, busy_ns: int) -> None:
        """Record how a text came into its batch; those that came together have arrived once."""
        if order.encode_ns > process.last_order_ns:
            process.last_order_ns = order.encode_ns
            self._handoffs.received("front>tokenizer", order, process.number)
        handoff = self._handoffs["front>tokenizer"]
        handoff.inboxes.add(batch.picked_ns - busy_ns - order.decoded_ns)
        handoff.batches.add(batch.started_ns - batch.picked_ns)

    def count_sent(self) -> None:
        """Put what has been sent so far into the account of handoffs."""
        if self.processes:
            messages = sum(process.edge.messages_sent for process in self.processes)
            num_bytes = sum(process.edge.bytes_sent for process in self.processes)
            self._handoffs.sent("front>tokenizer", messages, num_bytes)

    def restart(self, process: Tokenizer, batch: Collection[int]) -> None:
        """A tokenizer died while it worked on ``batch`` (keys), and comes back: what it had goes to
        its successor or to another one, but what keeps killing them."""
        condemned = []
        now = time.monotonic_ns()
        texts = process.died()
        state = self._waiting_state
        for text in texts:
            text.deaths += text.key in batch
            if text.over:
                self.settle(text)
                continue
            if text.timeline is not None:
                text.timeline.enter(_COMPUTE, text.sent_ns)
                text.timeline.enter(state, now)
            if text.deaths >= CONDEMNED_AT:
                condemned.append(text)
            else:
                self._wait(text)
        self._waiting = OrderedDict(sorted(self._waiting.items()))
        self._enter(state, now)
        for text in condemned:
            self.settle(text)
            reason = f"{text.deaths} processes died while they tokenized it; it is not tried again"
            self._on_failed(text, reason, False)

    def resume(self, process: Tokenizer, facts: dict[str, Any]) -> None:
        """The process that died is back, with these facts."""
        process.started(facts)
        self._enter(self._waiting_state, time.monotonic_ns())

    def _enter(self, state: int, now: int) -> None:
        for text in self._waiting.values():
            if text.timeline is not None:
                text.timeline.enter(state, now)

    def give_up(self) -> list[Text]:
        """Nothing is tokenized any more. Returns the texts that somebody waits for."""
        there = (text for process in self.processes for text in process.texts.values())
        texts = [*there, *self._waiting.values()]
        wanted = [text for text in texts if not text.over]
        for text in texts:
            self.settle(text)
        self._waiting.clear()
        self.waiting_bytes = 0
        return wanted


def _account(
    timeline: Timeline, order: Stamps, batch: BatchStamps, busy_ns: int, answer: Stamps
) -> None:
    """The states of a text on its way to a tokenizer, in it, and back."""
    timeline.enter(_TO[1], order.sent_ns)
    timeline.enter(_TO[2], order.received_ns)
    timeline.enter(_HERE[0], order.decoded_ns)
    if busy_ns:
        timeline.enter(_HERE[1], batch.picked_ns - busy_ns)
    timeline.enter(_HERE[2], batch.picked_ns)
    timeline.enter(_HERE[3], batch.started_ns)
    timeline.enter(_HERE[4], batch.ended_ns)
    timeline.enter(_BACK[0], answer.encode_ns)
    timeline.enter(_BACK[1], answer.sent_ns)
    timeline.enter(_BACK[2], answer.received_ns)
    timeline.enter(_INBOX, answer.decoded_ns)
