"""The life of a request in the front: accepted, opened, streamed, ended exactly once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pdv_mp.config import EngineConfig
from pdv_mp.front.accounting import account, encode_done, take_back
from pdv_mp.front.admission import Admission, ModelFacts
from pdv_mp.front.connections import MAX_WAITING_BYTES, ClientSocket
from pdv_mp.front.dispatch import Dispatcher
from pdv_mp.front.intake import Intake
from pdv_mp.front.journal import Journal, Request
from pdv_mp.front.logprobs import LogprobReader
from pdv_mp.front.outbox import BYTES_PER_ID, Connection, LastMessage, Reply
from pdv_mp.front.replicas import Replica
from pdv_mp.front.statistics import Statistics
from pdv_mp.front.text import TextCodec
from pdv_mp.front.tokenizers import Tokenizer, Tokenizers
from pdv_mp.timeline import state_index
from pdv_mp.wire import engine as wire
from pdv_mp.wire import protocol
from pdv_mp.wire.protocol import ErrorCode, PackedList, ProtocolError
from pdv_mp.workers.handoffs import Handoffs

_MILLISECOND = 1_000_000

_OUTBOX = state_index("front.outbox")

_FINISH_NAMES = {
    wire.Finish.STOP: "stop",
    wire.Finish.LENGTH: "length",
    wire.Finish.ABORT: "abort",
}


class Service:
    """Serves requests between the clients' socket and the replicas' edges."""

    def __init__(
        self,
        config: EngineConfig,
        codec: TextCodec,
        facts: ModelFacts,
        admission: Admission,
        clients: Callable[[Service], ClientSocket],
        replicas: Sequence[Replica],
        tokenizers: Sequence[Tokenizer],
        handoffs: Handoffs,
    ) -> None:
        self._max_open = config.scheduling.max_open_requests
        self.clients = clients(self)
        self.journal = Journal(replicas)
        self.dispatcher = Dispatcher(self.journal, replicas, facts.eos_ids)
        self.tokenizers = Tokenizers(
            tokenizers,
            handoffs,
            lambda text, ids: self.intake.tokenized(text, ids),
            lambda text, why, retryable: self.intake.not_tokenized(text, why, retryable),
        )
        self.intake = Intake(self, config, codec, admission, self.tokenizers)
        self.draining = False
        self.lost: str | None = None
        self.finished: Counter[str] = Counter(stop=0, length=0, abort=0)
        self.errors: Counter[str] = Counter({code.value: 0 for code in ErrorCode})
        self.statistics = Statistics(config.server)
        self._last_finish_ns = 0
        self._finish_interval_ms = 0.0

    def refuse(self, connection: Connection, error: ProtocolError) -> None:
        """Answer a message that cannot be served."""
        self.errors[error.code.value] += 1
        frame = protocol.error(
            error.code, error.message, error.id, retry_after_ms=error.retry_after_ms
        )
        self.clients.send(connection, Reply(frame))

    def check_open(self, connection: Connection, id: str) -> None:
        """Raises ProtocolError if a new request cannot be taken now."""
        if id in connection.open:
            raise ProtocolError(
                ErrorCode.DUPLICATE_ID, f"id {id!r} is still open on this connection", id
            )
        self.check_serving(id)
        if self.draining:
            raise ProtocolError(ErrorCode.DRAINING, "the server is shutting down", id)
        self.check_room(id)

    def check_serving(self, id: str) -> None:
        """Raises ProtocolError if a process is gone for good."""
        if self.lost is not None:
            raise ProtocolError(ErrorCode.LANE_FAILED, f"process {self.lost} died", id)

    def check_room(self, id: str) -> None:
        """Raises ProtocolError if as much is open as may be."""
        if len(self.journal.open) + self.tokenizers.num_questions >= self._max_open:
            raise self.full(f"{self._max_open} requests are open", id)

    def full(self, why: str, id: str) -> ProtocolError:
        """The error of a message that may be sent again later."""
        return ProtocolError(
            ErrorCode.QUEUE_FULL,
            f"{why}; send this one again later",
            id,
            retry_after_ms=int(min(max(self._finish_interval_ms, 10.0), 5000.0)),
        )

    def tokens(self, replica: Replica, message: wire.Tokens) -> None:
        """Deliver what one cycle of a replica's scheduler emitted."""
        timelines = dict(message.timelines)
        texts = dict(message.messages)
        drafted = message.drafted.tolist()
        accepted = message.accepted.tolist()
        self.statistics.verified(drafted, accepted)
        finishes = message.finish.tolist()
        stop_ids = message.stop_ids.tolist()
        cached = message.cached.tolist()
        queued = message.queued_ns.tolist()
        ids = message.ids.tolist()
        logprobs = None if message.logprobs is None else LogprobReader(message.logprobs)
        start = 0
        for entry, (key, count) in enumerate(
            zip(message.requests.tolist(), message.counts.tolist(), strict=True)
        ):
            end = start + count
            finish = wire.Finish(finishes[entry])
            request = replica.running.get(key)
            if request is None:  # it ended here before
                if finish is not wire.Finish.NONE:
                    replica.closing.discard(key)
            elif request.parking and finish is wire.Finish.ABORT:
                self.dispatcher.park(replica, request)
            else:
                request.speculation.add(drafted[entry], accepted[entry])
                if not request.output_ids:  # of its first admission
                    request.engine_queued_ns = queued[entry]
                    request.cached_tokens = cached[entry]
                if finish in (wire.Finish.FAILED, wire.Finish.CONDEMNED):
                    self.journal.finish(replica, request)
                    text = texts.get(entry, "the worker could not serve this request")
                    retryable = finish is wire.Finish.FAILED
                    self._fail(request, ErrorCode.INTERNAL, text, retryable)
                else:
                    self._take(
                        replica,
                        request,
                        finish,
                        (
                            ids[start:end],
                            logprobs,
                            start,
                            min(accepted[entry], count),
                            finish,
                            stop_ids[entry],
                            timelines.get(entry),
                            message.emitted_ns,
                            message.stamps,
                        ),
                    )
            start = end

    def _take(
        self, replica: Replica, request: Request, finish: wire.Finish, entry: tuple[Any, ...]
    ) -> None:
        """Deliver an entry, given as the arguments of :meth:`_deliver`, unless it must wait for
        what the next one proves of its request."""
        quarantine = replica.quarantine
        going_on = finish is wire.Finish.NONE
        request.entries += 1
        if going_on and quarantine.holds(request):
            request.held = entry
            return
        if request.held is not None:
            held, request.held = request.held, None
            self._deliver(replica, request, *held)
            if request.ended:
                if not going_on:
                    replica.closing.discard(request.key)
                return
        self._deliver(replica, request, *entry)
        if request.ended or not quarantine.is_cleared(request):
            return
        if quarantine.suspects:  # which must be alone in their turn
            replica.park(request)

    def _deliver(
        self,
        replica: Replica,
        request: Request,
        ids: list[int],
        logprobs: LogprobReader | None,
        logprob_row: int,
        num_drafted: int,
        finish: wire.Finish,
        stop_id: int,
        snapshot: list[Any] | None,
        emitted_ns: int,
        stamps: wire.Stamps,
    ) -> None:
        started_ns = time.monotonic_ns()
        piece = request.output.push(ids, final=finish is not wire.Finish.NONE)
        text_ns = time.monotonic_ns()
        ids = ids[: piece.num_ids]
        flags = [1] * min(num_drafted, len(ids))
        flags += [0] * (len(ids) - len(flags))
        if ids:
            request.first_token_ns = request.first_token_ns or text_ns
            had_ns = text_ns
            if not request.stream and request.last_token_ns:
                # Several messages may have come together, since nobody waits for these tokens.
                had_ns = max(request.last_token_ns, emitted_ns)
            self.statistics.emitted(request, len(ids), had_ns)
        ending = piece.stop is not None or finish is not wire.Finish.NONE
        if snapshot is not None:
            account(request, snapshot, stamps, started_ns, text_ns, ending)
        packed = None
        if request.params.logprobs is not None:
            packed = PackedList() if logprobs is None else logprobs.pack(ids, logprob_row)
        self._emit(request, ids, flags, piece.text, packed)
        if not ending:
            return
        if finish is not wire.Finish.NONE:
            self.journal.finish(replica, request)
        else:
            self.journal.end(request)
        if piece.stop is not None:
            self._done(request, "stop", piece.stop)
        else:
            reason = stop_id if finish is wire.Finish.STOP and stop_id >= 0 else None
            self._done(request, _FINISH_NAMES[finish], reason)

    def _emit(
        self,
        request: Request,
        ids: list[int],
        flags: list[int],
        text: str,
        logprobs: PackedList | None,
    ) -> None:
        offset = len(request.output_ids)
        request.output_ids += ids
        request.drafted += flags
        if not request.stream:
            request.texts.append(text)
            if request.logprobs is not None and logprobs is not None:
                request.logprobs.extend(logprobs)
        elif ids or text:
            self.clients.send_tokens(request, offset, ids, flags, text, logprobs)

    def prompt_logprobs(self, replica: Replica, message: wire.PromptLogprobs) -> None:
        """Collect a part of a prompt's log-probabilities; what has arrived before is dropped.

        Raises ValueError for a part that leaves a gap.
        """
        request = replica.running.get(message.request)
        if request is None or request.prompt_logprobs is None:
            return  # it ended here before
        known = request.prompt_logprobs.count
        skipped = known - (message.start - 1)
        if skipped < 0:
            raise ValueError(f"prompt log-probabilities from {message.start} on follow {known}")
        end = message.start + len(message.logprobs.chosen)
        ids = request.prompt_ids[message.start + skipped : end].tolist()
        request.prompt_logprobs.extend(LogprobReader(message.logprobs).pack(ids, skipped))

    def cancel(self, connection: Connection, id: str) -> None:
        """End a request with ``abort``, unless it is over or was never open. One whose prompt is
        being tokenized ends when it has been accepted."""
        request = connection.open.get(id)
        if request is None or request.ended:
            return
        if request.untokenized:
            request.cancelled = True
        else:
            self.abort(request)

    def abort_all(self) -> None:
        """End every open request with ``abort``; those that are not accepted yet are refused."""
        self.intake.refuse_unanswered(ErrorCode.DRAINING, "the server is shutting down")
        for request in list(self.journal.open.values()):
            self.abort(request)

    def abort(self, request: Request) -> None:
        """End an accepted request with ``abort``."""
        self.journal.end(request)
        take_back(request)
        logprobs = None if request.params.logprobs is None else PackedList()
        self._emit(request, [], [], request.output.push((), final=True).text, logprobs)
        self._done(request, "abort", None)

    def _done(self, request: Request, finish: str, reason: str | int | None) -> None:
        self.finished[finish] += 1
        now = time.monotonic_ns()
        if finish != "abort":
            self.statistics.finished(request, now)
        if self._last_finish_ns:
            interval = (now - self._last_finish_ns) / _MILLISECOND
            self._finish_interval_ms += 0.1 * (interval - self._finish_interval_ms)
        self._last_finish_ns = now
        if request.connection.outbox:
            request.timeline.enter(_OUTBOX, now)
        size = 0
        if not request.stream:
            size = BYTES_PER_ID * len(request.output_ids)
            size += sum(len(text.encode()) for text in request.texts)
        for logprobs in (request.logprobs, request.prompt_logprobs):
            if logprobs is not None:
                size += len(logprobs.data)
        self.clients.send(
            request.connection,
            LastMessage(request, lambda: encode_done(request, finish, reason), size),
        )

    def end_with(
        self, request: Request, code: ErrorCode, message: str, retryable: bool | None = None
    ) -> None:
        """End an open request with an ``error``."""
        self.journal.end(request)
        self._fail(request, code, message, retryable)

    def _fail(
        self, request: Request, code: ErrorCode, message: str, retryable: bool | None = None
    ) -> None:
        """Send the ``error`` that ends a request; the journal knows already that it is over."""
        self.errors[code.value] += 1
        request.logprobs = request.prompt_logprobs = None
        self.clients.send(
            request.connection,
            LastMessage(
                request,
                lambda: protocol.error(code, message, request.id, retryable=retryable),
                len(message),
            ),
        )

    def connection_gone(self, connection: Connection) -> None:
        """Cancel what a client left behind."""
        for request in connection.open.values():
            if not request.ended:
                self.journal.end(request)
                self.finished["abort"] += 1

    def slow_consumer(self, connection: Connection) -> None:
        """End the requests of a client for which too much waits; those that have their last
        message waiting keep it."""
        limit = MAX_WAITING_BYTES // 2**20
        message = f"the client reads too slowly; over {limit} MiB waited for it"
        for request in list(connection.open.values()):
            if not request.ended:
                self.end_with(request, ErrorCode.SLOW_CONSUMER, message)

    def restart(self, replica: Replica, batch: Collection[int], restarts_left: int) -> None:
        """A replica's process died while it worked on ``batch`` (keys), and comes back: its open
        requests go on elsewhere or wait for it, but those that keep killing it."""
        for request in self.dispatcher.restart(replica, batch, restarts_left):
            names = " or ".join(sorted(set(request.killed)))
            text = (
                f"process {names} died {len(request.killed)} times while it worked on this "
                "request, at last with no other; it is not tried again"
            )
            self.end_with(request, ErrorCode.INTERNAL, text, retryable=False)

    def resume(self, replica: Replica) -> None:
        """The process that died is back: go on with what waits for it."""
        self.dispatcher.resume(replica)

    def lose(self, name: str) -> None:
        """The process ``name`` died for good: every open request gets ``lane_failed``."""
        self.lost = name
        reason = f"process {name} died"
        self.intake.refuse_unanswered(ErrorCode.LANE_FAILED, reason)
        for request in list(self.journal.open.values()):
            self.end_with(request, ErrorCode.LANE_FAILED, reason)

    def end_turn(self) -> None:
        """What one turn of the loop left to do: closes, freed credits, lost connections."""
        self.clients.settle()
        self.dispatcher.end_turn()
        self.tokenizers.send()

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer."""
        return not self.journal.open and not self.tokenizers.num_questions
